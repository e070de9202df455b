"""Sizes of a base, memory and operations of a run, computed from configurations alone."""
