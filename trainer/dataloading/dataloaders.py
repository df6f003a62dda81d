"""Samplers, dataloaders and collate functions of training and evaluation: a part of `Trainer`."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import has_length

from storage import safe_read
from trainer.dataloading.samplers import (
    EvalBatches,
    GroupedByLength,
    limited_count,
    limited_dataset,
    limited_sampler,
    record_batches,
    recorder_of,
    share_train_batches,
)
from trainer.preemption import IgnoringSignals


class DataLoading:
    """Samplers whose order follows from seed and epoch, limits, batches whose samples are known."""

    def _samples_per_epoch(self, dataset: Any, args: Any) -> int:
        if not has_length(dataset):
            return samples_of_stream(args, self.settings.limit_train_batches)
        whole = len(self.sampler(args.seed)) if self.sampler is not None and self.settings.shuffle else len(dataset)
        batch = args.train_batch_size * args.world_size
        share, drop_last = self.settings.limit_train_batches, args.dataloader_drop_last
        return limited_count(whole, share, batch, drop_last, "limit_train_batches")

    def train_sampler(self, train_dataset: Any, default: Callable[[Any], Any]) -> Any:
        """Return the sampler of the data, or sequential order, or `default(train_dataset)`, limited to its share."""
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        if not self.settings.shuffle:
            sampler = torch.utils.data.SequentialSampler(dataset)
        elif self.sampler is None:
            sampler = default(train_dataset)
            if isinstance(sampler, LengthGroupedSampler):
                sampler = GroupedByLength(sampler.lengths, sampler.batch_size * self.args.world_size, self._data_seed())
        else:
            sampler = self.sampler(self._data_seed())
        batch = self._train_batch_size * self.args.world_size
        return limited_sampler(sampler, self.settings.limit_train_batches, batch, self.args.dataloader_drop_last)

    def _data_seed(self) -> int:
        return self.args.data_seed if self.args.data_seed is not None else self.args.seed

    def _limit_evaluation(self) -> None:
        limit, batch = self.settings.limit_val_batches, self.args.eval_batch_size * self.args.world_size
        if isinstance(self.eval_dataset, dict):
            sets = self.eval_dataset.items()
            self.eval_dataset = {name: limited_dataset(dataset, limit, batch) for name, dataset in sets}
        elif self.eval_dataset is not None:
            self.eval_dataset = limited_dataset(self.eval_dataset, limit, batch)

    def train_dataloader(self, dataset: Any, build: Callable[[Any], Any]) -> Any:
        """Return `build(dataset)`, which knows the samples of its batches if it returns them in the sampler's order.

        Several processes need that order: one may have a last batch that does not count.
        """
        loader = share_train_batches(build(dataset))
        inner = getattr(loader, "base_dataloader", loader)
        inner.in_order = inner.in_order or self.args.world_size > 1
        return self._with_own_generator(record_batches(loader) if inner.in_order else loader)

    def transformed(self, batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Apply `train_transform` to each micro-batch of a step.

        Its random numbers are a function of (seed, step, micro-batch, process), so that a resumed run draws the same.
        """
        if self.settings.train_transform is None:
            return batches
        return (self._transformed(batch, number) for number, batch in enumerate(batches))

    def _transformed(self, batch: dict[str, Any], number: int) -> dict[str, Any]:
        batch = self._prepare_inputs(batch)
        place = (self.args.seed, self.state.global_step, number, self.args.process_index)
        seed = int.from_bytes(hashlib.blake2b(repr(place).encode(), digest_size=7).digest(), "little")
        generator = torch.Generator(self.args.device).manual_seed(seed)
        return self.settings.train_transform(batch, generator)

    def eval_dataloader(self, dataset: Any, build: Callable[[Any], Any]) -> Any:
        """`build(dataset)`; of several processes each gets its own share of the batches, no sample twice."""
        with self._evaluation_arguments():
            if self.args.world_size == 1 or isinstance(dataset, torch.utils.data.IterableDataset):
                return self._with_own_generator(build(dataset))
            args = self.args
            indices = self._get_eval_sampler(dataset) or torch.utils.data.SequentialSampler(dataset)
            loader = torch.utils.data.DataLoader(
                dataset,
                batch_sampler=EvalBatches(indices, args.eval_batch_size, args.process_index, args.world_size),
                collate_fn=self._get_collator_with_removed_columns(self.data_collator),
                num_workers=args.dataloader_num_workers,
                prefetch_factor=args.dataloader_prefetch_factor,
                multiprocessing_context=args.dataloader_multiprocessing_context,
                pin_memory=args.dataloader_pin_memory,
            )
            return self._with_own_generator(loader)

    def _with_own_generator(self, loader: Any) -> Any:
        """Give a loader its own generator for the seeds of its workers.

        With the global generator, starting workers would change the random numbers of dropout, and a resumed run,
        which starts them once more, would differ from an uninterrupted one.
        """
        inner = getattr(loader, "base_dataloader", loader)
        inner.generator = torch.Generator().manual_seed(self.args.seed)
        inner.worker_init_fn = IgnoringSignals(inner.worker_init_fn)
        return loader

    @contextlib.contextmanager
    def _evaluation_arguments(self) -> Iterator[None]:
        """Arguments for an evaluation loader: no sample is dropped, and the number of workers may differ."""
        names = (
            "dataloader_multiprocessing_context",
            "dataloader_drop_last",
            "dataloader_num_workers",
            "dataloader_prefetch_factor",
            "dataloader_persistent_workers",
        )
        before = {name: getattr(self.args, name) for name in names}
        self.args.dataloader_drop_last = False
        if self.settings.eval_num_workers is not None:
            self.args.dataloader_num_workers = self.settings.eval_num_workers
        if not self.args.dataloader_num_workers:
            self.args.dataloader_prefetch_factor, self.args.dataloader_persistent_workers = None, False
            self.args.dataloader_multiprocessing_context = None
        try:
            yield
        finally:
            for name, value in before.items():
                setattr(self.args, name, value)


def collate_named_keys(collate: Callable, names: frozenset[str], samples: Any) -> Any:
    """Collate without other columns of the samples than `names`, and without other keys of the batch.

    Samples of which the forward names no column keep all: then the collate function makes the model's inputs of them.
    """
    if isinstance(samples, list) and isinstance(samples[0], Mapping) and names & samples[0].keys():
        samples = [{name: value for name, value in sample.items() if name in names} for sample in samples]
    batch = collate(samples)
    if not isinstance(batch, Mapping):
        return batch
    return {name: value for name, value in batch.items() if name in names}


def without_adapter(model: nn.Module) -> nn.Module:
    """Return the model inside PEFT's wrapper, whose forward names the inputs that it takes, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


# ---- the position in the data: resume mid-epoch without replaying the loader, even if the batch size changed ----

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
