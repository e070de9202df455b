"""What every part uses: errors, digests, progress, conversations and the nouns handed between stages."""
