"""Index and batch samplers: limits, seeded orders, how processes share the batches, and which samples are in each."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import IterableDataset, Sampler, Subset
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


# ---- batches ----


class TrainBatches(Sampler[list[int]]):
    """The batches of all processes in turn: batch n is process n % processes' in step n // processes.

    The last, incomplete step of an epoch is divided evenly. A process that gets none of its samples repeats one that
    does not count, given as -1 - index (see `RecordedBatches`).

    Args:
        sampler: Indices of an epoch, the same in all processes.
        batch_size: Of one process.
    """

    def __init__(self, sampler: Any, batch_size: int, processes: int, drop_last: bool):
        self.sampler, self.batch_size, self.processes, self.drop_last = sampler, batch_size, processes, drop_last

    def __len__(self) -> int:
        steps = len(self.sampler) / (self.batch_size * self.processes)
        return (math.floor(steps) if self.drop_last else math.ceil(steps)) * self.processes

    def __iter__(self) -> Iterator[list[int]]:
        step: list[int] = []
        for index in self.sampler:
            step.append(index)
            if len(step) == self.batch_size * self.processes:
                yield from self._divided(step)
                step = []
        if step and not self.drop_last:
            yield from self._divided(step)

    def _divided(self, step: list[int]) -> Iterator[list[int]]:
        for process in range(self.processes):
            first, end = (len(step) * part // self.processes for part in (process, process + 1))
            yield step[first:end] or [-1 - step[0]]


def share_train_batches(loader: Any) -> Any:
    """Let the shard of accelerate's loader take its batches from `TrainBatches`; its own would repeat samples.

    Returns:
        The loader; as it is if one process takes all batches.
    """
    shard = getattr(loader, "batch_sampler", None)
    inner = getattr(shard, "batch_sampler", None)
    if inner is not None and not shard.split_batches:
        shard.batch_sampler = TrainBatches(inner.sampler, inner.batch_size, shard.num_processes, inner.drop_last)
        shard.batch_size, shard.even_batches = None, False
    return loader


class EvalBatches(Sampler[list[int]]):
    """The batches of one process: each `processes`-th of those that one process alone would have.

    Processes with fewer batches than others repeat the first one at the end, because models that are sharded or
    synchronize buffers need the same number of forward passes everywhere. Only the first `counted` batches count.

    Args:
        indices: Indices of all samples, the same in all processes.
    """

    def __init__(self, indices: Iterable[int], batch_size: int, process: int, processes: int):
        self.indices, self.batch_size, self.process, self.processes = indices, batch_size, process, processes

    @property
    def whole(self) -> int:
        """Batches of all processes together."""
        return math.ceil(len(self.indices) / self.batch_size)

    @property
    def counted(self) -> int:
        return len(range(self.process, self.whole, self.processes))

    def __len__(self) -> int:
        return math.ceil(self.whole / self.processes)

    def __iter__(self) -> Iterator[list[int]]:
        indices = list(self.indices)
        batches = [indices[first : first + self.batch_size] for first in range(0, len(indices), self.batch_size)]
        own = batches[self.process :: self.processes]
        yield from own + batches[:1] * (len(self) - len(own))


class RecordedBatches:
    """A batch sampler that remembers the indices of batches which the training loop has not taken yet.

    A loader draws ahead (workers, prefetching) but returns batches in the sampler's order, so the first remembered
    indices are those of the next batch. Only the loop's own pass is recorded; others may read the same loader.

    Args:
        batches: Lists of indices; a negative index -1 - i stands for sample i that does not count (`TrainBatches`).
    """

    def __init__(self, batches: Any):
        self.batches = batches
        self.drawn: deque[list[Any]] = deque()
        self.skipped: int | None = None  # batches at the beginning of the next pass that nobody takes; None: unrecorded

    def record_next_pass(self, skipped: int = 0) -> None:
        self.skipped = skipped

    def take(self) -> list[Any] | None:
        """The indices of the oldest batch not taken yet; none of them counts if they are empty. None: unknown."""
        return self.drawn.popleft() if self.drawn else None

    def noted(self, batches: Iterator[Any], samples: deque[list[Any] | None]) -> Iterator[Any]:
        """The batches of the loop, as they are; `samples` gets the indices of each."""
        for batch in batches:
            samples.append(self.take())
            yield batch

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Any]]:
        skipped, self.skipped = self.skipped, None
        drawn: deque[list[Any]] | None = None
        if skipped is not None:
            self.drawn = drawn = deque()
        for number, indices in enumerate(self.batches):
            counts = not (isinstance(indices[0], int) and indices[0] < 0)
            if drawn is not None and number >= skipped:
                drawn.append(list(indices) if counts else [])
            yield indices if counts else [-1 - indices[0]]

    def __getattr__(self, name: str) -> Any:
        if name == "batches" or name.startswith("__"):  # not set yet while unpickling
            raise AttributeError(name)
        return getattr(self.batches, name)


def record_batches(loader: Any) -> Any:
    """Let a loader of map-style data draw its batches through `RecordedBatches`; returns the loader."""
    inner = getattr(loader, "base_dataloader", loader)
    if inner.batch_sampler is not None and not isinstance(inner.dataset, IterableDataset):
        # Assigning the attribute is refused by torch; nothing has read the batch sampler yet.
        vars(inner)["batch_sampler"] = RecordedBatches(inner.batch_sampler)
    return loader


def recorder_of(loader: Any) -> RecordedBatches | None:
    batches = getattr(loader, "batch_sampler", None)
    return batches if isinstance(batches, RecordedBatches) else None
