"""Recipes, data, training, evaluation and the registry."""
