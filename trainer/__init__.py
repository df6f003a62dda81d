"""The HuggingFace Trainer with what it lacks: named losses, a run folder, parameter groups, logs a person can read."""
