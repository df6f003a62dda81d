"""Writing and reading checkpoints: staging, background writer, sharded state."""
