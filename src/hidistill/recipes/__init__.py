"""Recipes: the only place where concrete parts meet."""
