"""The size of an optimizer step; importing this needs only the standard library."""

from __future__ import annotations

import os


def samples_per_step(run) -> int:
    """Return how many samples all processes together take for one optimizer step."""
    accumulated = run.trainer.get("gradient_accumulation_steps", 1)
    processes = os.environ.get("WORLD_SIZE", "")
    return run.hyper.per_device_train_batch_size * accumulated * (int(processes) if processes.isdecimal() else 1)
