"""A synthetic kind of data and its network, which use every part of the task contract (docs/architecture.md)."""
