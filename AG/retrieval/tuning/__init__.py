"""Choosing the settings of re-ranking: the grid, the search, the choice, its picture."""
