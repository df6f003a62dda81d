"""A resumed run goes on in the data where it stood, also with other batches; no batch is drawn to be dropped."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import transformers.trainer

from storage import safe_read

KEY = "data_position"  # in trainer_state.json


@dataclass(frozen=True)
class Position:
    """How a run's steps count through the data.

    Attributes:
        steps_per_epoch, samples_per_epoch, samples_per_step: Of all processes together.
        steps_before: Added to the run's steps, which were of another size once: the steps that the samples until then
            would have been, less those that they were.
    """

    steps_per_epoch: int
    samples_per_epoch: int
    samples_per_step: int
    steps_before: int = 0

    def place(self, step: int) -> tuple[int, int]:
        """(epochs done, steps done in the one that is not)"""
        return divmod(step + self.steps_before, self.steps_per_epoch)

    def samples(self, step: int) -> int:
        """How many samples were drawn before a step."""
        epochs, steps = self.place(step)
        return epochs * self.samples_per_epoch + min(steps * self.samples_per_step, self.samples_per_epoch)

    def followed_by(self, now: Position, step: int) -> Position:
        """`now`, its steps counted on from where this stood at a step.

        Where that is in the middle of one of the new steps, that step is taken whole: a few samples come twice.
        """
        if replace(now, steps_before=self.steps_before) == self:
            return self
        epochs, rest = divmod(self.samples(step), now.samples_per_epoch)
        steps = epochs * now.steps_per_epoch + rest // now.samples_per_step
        return replace(now, steps_before=steps - step)


def stored_position(checkpoint: Path) -> tuple[int, Position | None]:
    """The step of a checkpoint, and how its steps count; None where it does not say."""
    state = safe_read.read_json(checkpoint / "trainer_state.json")
    stored = state.get("stateful_callbacks", {}).get(KEY)
    if stored is None:
        return state["global_step"], None
    return state["global_step"], Position(**stored)


@contextlib.contextmanager
def positions_instead_of_skipping() -> Iterator[None]:
    """Inside, transformers' resuming takes no time in the number of batches done, where the sampler allows it."""
    skipping = transformers.trainer.skip_first_batches
    transformers.trainer.skip_first_batches = lambda loader, batches=0: started_at(loader, batches, skipping)
    try:
        yield
    finally:
        transformers.trainer.skip_first_batches = skipping


def started_at(loader: Any, batches: int, skipping: Callable[[Any, int], Any]) -> Any:
    """The loader, whose next pass begins after `batches` batches of each process; `skipping(loader, batches)` where
    its sampler has no `set_position`, or where processes fill up an uneven end with the epoch's first batches."""
    shard = loader.batch_sampler
    inner = getattr(shard, "batch_sampler", shard)  # of several processes each takes every n-th batch
    processes = getattr(shard, "num_processes", 1)
    sampler, size = getattr(inner, "sampler", None), getattr(inner, "batch_size", None)
    knows = hasattr(sampler, "set_position") and size and not getattr(shard, "split_batches", False)
    if not knows or (processes > 1 and len(sampler) % (size * processes)):
        return skipping(loader, batches)
    sampler.set_position(min(batches * size * processes, len(sampler)))
    return loader
