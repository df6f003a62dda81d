"""Samplers and data sets limited to a share of an epoch, and a seeded shuffle for evaluation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sized
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler, Subset


def limited_sampler(
    sampler: Any, batches: int | float | None, batch: int, drop_last: bool = False, name: str = "limit_train_batches"
) -> Any:
    """The first samples of each of a sampler's epochs; the sampler itself where that is all of them.

    Args:
        batches: int: batches of one process in an epoch; float: share of them, rounded down; None or 1.0: all.
        batch: samples that all processes together take at a time.
        drop_last: Whether the loader drops a last batch that is not full.

    Raises:
        ValueError: nothing would be left, or a share is above 1.
    """
    samples = limited_count(len(sampler), batches, batch, drop_last, name)
    return sampler if samples == len(sampler) else LimitedSampler(sampler, samples)


def limited_dataset(
    dataset: Any, batches: int | float | None, batch: int, drop_last: bool = False, name: str = "limit_val_batches"
) -> Any:
    """The data set's first samples, as many as `limited_sampler` would take; `__getitems__` is the data set's own."""
    samples = limited_count(len(dataset), batches, batch, drop_last, name)
    return dataset if samples == len(dataset) else Subset(dataset, range(samples))


def limited_count(samples: int, batches: int | float | None, batch: int, drop_last: bool, name: str) -> int:
    """How many of `samples` are left; see `limited_sampler`."""
    if batches is None or (isinstance(batches, float) and batches == 1.0):
        return samples
    there = samples // batch if drop_last else math.ceil(samples / batch)
    if isinstance(batches, float) and not 0 <= batches <= 1:
        raise ValueError(f"`{name}: {batches}` is a share and must be between 0 and 1; a whole number counts batches")
    # 0.29 of 100 is 29, though 0.29 * 100 is 28.999… in binary
    wanted = math.floor(batches * there + 1e-9) if isinstance(batches, float) else batches
    if wanted < 1:
        raise ValueError(f"`{name}: {batches}` leaves nothing of {there} batches of {batch} samples; raise it")
    return samples if wanted >= there else wanted * batch


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
        """The next iteration starts after this many samples; the one after it at 0 again."""
        assert 0 <= samples_done <= self.samples, samples_done
        self.position = samples_done

    def __iter__(self) -> Iterator[int]:
        start, self.position = self.position, 0
        if start and hasattr(self.sampler, "set_position"):
            self.sampler.set_position(start)
            return itertools.islice(self.sampler, self.samples - start)
        return itertools.islice(self.sampler, start, self.samples)


class SeededOrder(Sampler[int]):
    """One order of a data set's samples, a function of the seed: the same at every evaluation and in every process."""

    def __init__(self, samples: int, seed: int):
        self.samples, self.seed = samples, seed

    def __len__(self) -> int:
        return self.samples

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        return iter(torch.randperm(self.samples, generator=generator).tolist())


def eval_shuffle_sampler(dataset: Dataset | Sized, seed: int) -> SeededOrder:
    """The order of a shuffled evaluation. Under `limited_sampler` it makes the limit a random choice of samples."""
    return SeededOrder(len(dataset), seed)
