"""Resuming: find the checkpoint, compare its configuration with the current one."""
