"""Callbacks: logs, progress, early stopping, checkpoint selection."""
