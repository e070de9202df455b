"""Sizes of a model, and memory and operations of a run, from configurations alone."""
