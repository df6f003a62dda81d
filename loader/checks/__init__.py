"""Checks of a resolved configuration that need neither torch nor the data."""
