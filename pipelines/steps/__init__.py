"""Stages as values: a step with its key, and the runner that finds or builds it."""
