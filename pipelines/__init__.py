"""Everything from a recipe up to a registry entry."""
