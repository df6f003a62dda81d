"""Declarations of every configuration key, as dataclass fields with metadata."""
