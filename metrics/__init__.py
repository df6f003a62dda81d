"""Scores computed from predictions. Importing a module of this package needs only what its scores need."""
