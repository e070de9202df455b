"""Errors, digests, progress, conversations and the nouns that stages hand to each other."""
