"""Sizes of a model, and memory and floating-point operations of a run, from configurations alone."""
