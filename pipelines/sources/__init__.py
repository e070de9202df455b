"""The files that a recipe names: found, opened and hashed."""
