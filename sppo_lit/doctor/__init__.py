"""Checks before a long run, on the recipe's own models and problems, and on the memory and disk that it needs."""
