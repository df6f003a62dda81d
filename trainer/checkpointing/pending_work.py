"""What a step had still to do when its run was told to stop: kept in its checkpoint, done first when it goes on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainer.checkpointing.step_state import read_interval


@dataclass(frozen=True)
class Unfinished:
    """All of it; false where nothing is left.

    Attributes:
        evaluate: An evaluation, which may have been left in the middle.
        save: A checkpoint, once the evaluation or the epoch's end has come.
        epoch: The end of the epoch.
        stop: The end of the training, which something else than its last step had brought.
        grad_norm, learning_rate: Of the step, for a log line at the epoch's end.
    """

    evaluate: bool
    save: bool
    epoch: bool
    stop: bool
    grad_norm: float | None = None
    learning_rate: float | None = None

    def __bool__(self) -> bool:
        return self.evaluate or self.save or self.epoch or self.stop


NOTHING = Unfinished(False, False, False, False)


def unfinished(checkpoint: Path) -> Unfinished:
    """Of the step of a checkpoint."""
    due = read_interval(checkpoint).get("due")
    return Unfinished(**due) if due else NOTHING
