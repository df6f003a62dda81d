"""What a checkpoint's small files say of where it stands: step, length, batch, the course of the learning rate."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from loader.resolve.global_batch_size import ACCUMULATED, PER_DEVICE
from storage import manifest

POSITION = "data_position"  # its key in trainer_state.json, see trainer/dataloading/resume_position.py


class Facts:
    """Of a checkpoint that is whole; what a file does not say is None."""

    def __init__(self, folder: Path):
        self.folder = folder

    @cached_property
    def state(self) -> dict[str, Any]:
        return _mapping(self.folder / "trainer_state.json")

    @cached_property
    def schedule(self) -> dict[str, Any]:
        return _mapping(self.folder / "scheduler.json")

    @cached_property
    def manifest(self) -> dict[str, Any]:
        try:
            return manifest.read(self.folder)
        except ValueError:
            return {}

    @property
    def step(self) -> int:
        return self.state["global_step"]

    @property
    def total(self) -> int:
        """Steps of the whole run that wrote it."""
        return self.state["max_steps"]

    @property
    def steps_per_epoch(self) -> int | None:
        found: Any = self.state.get("stateful_callbacks")
        for name in (POSITION, "steps_per_epoch"):
            found = found.get(name) if isinstance(found, dict) else None
        return found if type(found) is int and found > 0 else None

    @property
    def course_end(self) -> int:
        """The step at which the learning-rate schedule ends, see `trainer.optimization.lr_scheduler.StepMapping`."""
        course = self.schedule.get("course")
        found = course.get("total") if isinstance(course, dict) else None
        return found if type(found) is int else self.total

    @property
    def batch(self) -> tuple[int, int, int] | None:
        """Batch per device, accumulated batches, processes."""
        found = tuple(self.manifest.get(name) for name in (PER_DEVICE, ACCUMULATED, "world_size"))
        return found if all(type(each) is int and each > 0 for each in found) else None


def _mapping(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
