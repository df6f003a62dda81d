"""Where in its schedule a run stands, once its length was changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Course:
    """Which step of its schedule a run is at: the two differ once a run's length was changed.

    From the run's step `start` on, where the schedule stood at `position`, it goes evenly to its end at `length`, which
    it reaches at the run's step `total`.
    """

    length: int
    "Steps that the schedule was made for."
    total: int
    start: int = 0
    position: float = 0
    held: bool = False
    "Past its end the schedule stands still."

    def at(self, step: int) -> float:
        """The schedule's step, a fraction perhaps, at a step of the run."""
        if self.held and step >= self.total:
            return self.length
        if self.length == self.total and self.start == self.position:
            return step
        return self.position + (self.length - self.position) * (step - self.start) / (self.total - self.start)


def stored_course(stored: Any, total: int) -> Course:
    """The course that a checkpoint's schedule is on; one of an earlier version is on its own.

    Raises:
        ValueError: what is stored is none.
    """
    if stored is None:
        return Course(total, total)
    try:
        found = Course(**stored)
        numbers = (found.length, found.total, found.start, found.position)
        if (
            all(isinstance(number, (int, float)) for number in numbers)
            and found.length > 0
            and found.total > found.start
        ):
            return found
    except TypeError:
        pass
    raise ValueError("the checkpoint's learning rate course is damaged; take another checkpoint")
