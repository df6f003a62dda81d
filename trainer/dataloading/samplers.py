"""Samplers and data sets limited to a share of an epoch, and a seeded shuffle for evaluation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler, Subset
from transformers.trainer_pt_utils import get_length_grouped_indices


def limited_sampler(sampler: Any, limit: int | float | None, batch: int, drop_last: bool = False) -> Any:
    """Return the first samples of each of a sampler's epochs; the sampler itself if that is all of them.

    Args:
        limit: int: batches of one process in an epoch; float: share of them, rounded down; None or 1.0: all.
        batch: Number of samples that all processes together take at a time.
        drop_last: Whether the loader drops a last batch that is not full.

    Raises:
        ValueError: no batch is left, or a share is above 1.
    """
    samples = limited_count(len(sampler), limit, batch, drop_last, "limit_train_batches")
    return sampler if samples == len(sampler) else LimitedSampler(sampler, samples)


def limited_dataset(dataset: Any, limit: int | float | None, batch: int, drop_last: bool = False) -> Any:
    """Return the data set's first samples, as many as `limited_sampler` would take."""
    samples = limited_count(len(dataset), limit, batch, drop_last, "limit_val_batches")
    return dataset if samples == len(dataset) else Subset(dataset, range(samples))


def limited_count(samples: int, limit: int | float | None, batch: int, drop_last: bool, name: str) -> int:
    """Return how many of `samples` are left; see `limited_sampler`. `name` is the setting, for messages."""
    if limit is None or (isinstance(limit, float) and limit == 1.0):
        return samples
    batches = samples // batch if drop_last else math.ceil(samples / batch)
    if isinstance(limit, float) and limit > 1:
        raise ValueError(f"`{name}: {limit}` is a share and must be between 0 and 1; a whole number counts batches")
    # 0.29 of 100 is 29, though 0.29 * 100 is 28.999… in binary
    left = math.floor(limit * batches + 1e-9) if isinstance(limit, float) else limit
    if left < 1:
        raise ValueError(f"`{name}: {limit}` leaves nothing of {batches} batches of {batch} samples; raise it")
    return samples if left >= batches else left * batch


class LimitedSampler(Sampler[int]):
    """The first `samples` indices of each epoch of `sampler`; `set_epoch` and `set_position` reach it."""

    def __init__(self, sampler: Any, samples: int):
        assert 0 < samples <= len(sampler), samples
        self.sampler, self.samples, self.position = sampler, samples, 0

    def __len__(self) -> int:
        return self.samples

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def set_position(self, samples_done: int) -> None:
        """Let the next iteration start after this many samples, and the one after it at 0 again."""
        assert 0 <= samples_done <= self.samples, samples_done
        self.position = samples_done

    def __iter__(self) -> Iterator[int]:
        start, self.position = self.position, 0
        if start and hasattr(self.sampler, "set_position"):
            self.sampler.set_position(start)
            return itertools.islice(self.sampler, self.samples - start)
        return itertools.islice(self.sampler, start, self.samples)


class GroupedByLength(Sampler[int]):
    """transformers' order of samples by their lengths, as a function of seed and epoch.

    Args:
        lengths: Of each sample.
        step_size: Samples of an optimizer step, over its micro-batches and all processes.
    """

    def __init__(self, lengths: Sequence[int], step_size: int, seed: int):
        self.lengths, self.step_size, self.seed = lengths, step_size, seed
        self.epoch = self.position = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def set_position(self, samples_done: int) -> None:
        """Let the next iteration start after this many samples, and the one after it at 0 again."""
        assert 0 <= samples_done <= len(self), samples_done
        self.position = samples_done

    def __iter__(self) -> Iterator[int]:
        start, self.position = self.position, 0
        generator = torch.Generator().manual_seed((self.seed << 20) + self.epoch)
        order = get_length_grouped_indices(self.lengths, self.step_size, generator=generator)
        return iter(order[start:])


class SeededOrder(Sampler[int]):
    """One order of a data set's samples, a function of the seed: the same at every evaluation and in every process."""

    def __init__(self, samples: int, seed: int):
        self.samples, self.seed = samples, seed

    def __len__(self) -> int:
        return self.samples

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        return iter(torch.randperm(self.samples, generator=generator).tolist())
