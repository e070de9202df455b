"""Checkpoints: writing, verifying, pruning."""
