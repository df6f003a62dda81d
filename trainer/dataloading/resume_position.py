"""Resume mid-epoch without replaying the dataloader, even if the batch size changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from storage import safe_read
from trainer.dataloading.batches import recorder_of

KEY = "data_position"  # in trainer_state.json


@dataclass(frozen=True)
class DataPosition:
    """How the steps of a run count through the data.

    Attributes:
        steps_per_epoch, samples_per_epoch, samples_per_step: Of all processes together.
        steps_before: Added to the run's steps after the batch size changed: the number of new steps that the samples
            so far would have been, minus the steps that they were.
        passes: Of a stream, whose length nobody knows: complete passes over it. None: the data have a length.
        pass_began: Of a stream: the step at which the current pass began.
    """

    steps_per_epoch: int
    samples_per_epoch: int
    samples_per_step: int
    steps_before: int = 0
    passes: int | None = None
    pass_began: int = 0

    def place(self, step: int) -> tuple[int, int]:
        """Return (epochs done, steps done in the current epoch)."""
        if self.passes is not None:
            return self.passes, step - self.pass_began
        return divmod(step + self.steps_before, self.steps_per_epoch)

    def samples(self, step: int) -> int:
        """Return the number of samples that were drawn before a step."""
        epochs, steps = self.place(step)
        return epochs * self.samples_per_epoch + min(steps * self.samples_per_step, self.samples_per_epoch)

    def followed_by(self, now: DataPosition, step: int) -> DataPosition:
        """Return `now` with its steps counted on from where this position was at a step.

        If that is in the middle of one of the new steps, the whole step is taken: a few samples are used twice.
        """
        if replace(now, steps_before=self.steps_before) == self:
            return self
        if self.passes is not None:
            done = (step - self.pass_began) * self.samples_per_step // now.samples_per_step
            return replace(now, passes=self.passes, pass_began=step - done)
        epochs, rest = divmod(self.samples(step), now.samples_per_epoch)
        steps = epochs * now.steps_per_epoch + rest // now.samples_per_step
        return replace(now, steps_before=steps - step)


def samples_of_stream(args: Any, limit: int | float) -> int:
    """Samples that a whole run takes of a stream, which count as one epoch.

    Raises:
        ValueError: nothing says how long the run is.
    """
    if args.max_steps <= 0:
        raise ValueError("the training data have no length, so `max_steps` must be set")
    if limit != 1.0:
        raise ValueError(f"`limit_train_batches: {limit}` needs training data with a length; set `max_steps` instead")
    return args.max_steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size


def stored_position(checkpoint: Path) -> tuple[int, DataPosition | None]:
    """The step of a checkpoint, and how its steps count; None if it does not say."""
    state = safe_read.read_json(checkpoint / "trainer_state.json")
    stored = state.get("stateful_callbacks", {}).get(KEY)
    if stored is None:
        return state["global_step"], None
    return state["global_step"], DataPosition(**stored)


def start_at(loader: Any, batches: int, skip: Callable[[Any, int], Any]) -> Any:
    """Return the loader, so that its next pass begins after `batches` batches of each process.

    Falls back to `skip(loader, batches)` if the sampler has no `set_position`: that draws the batches again.
    """
    shard = loader.batch_sampler
    inner = getattr(shard, "batch_sampler", shard)  # each process takes every n-th batch
    processes = getattr(shard, "num_processes", 1)
    sampler, size = getattr(inner, "sampler", None), getattr(inner, "batch_size", None)
    can_start = hasattr(sampler, "set_position") and size and not getattr(shard, "split_batches", False)
    if not can_start:
        if (recorder := recorder_of(loader)) is not None:
            recorder.record_next_pass(batches)
        return skip(loader, batches)
    sampler.set_position(min(batches * size * processes, len(sampler)))
    return loader
