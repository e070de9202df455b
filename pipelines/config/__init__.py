"""Recipes: the schema of their sections, loading, checks and error messages."""
