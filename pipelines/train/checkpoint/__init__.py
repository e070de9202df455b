"""Checkpoints: written, verified, kept and pruned."""
