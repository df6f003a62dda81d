"""Dataloaders, samplers, and the position in the data on resume."""
