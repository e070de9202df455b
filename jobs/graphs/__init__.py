"""Graphs of stages."""
