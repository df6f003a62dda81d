"""Batch samplers: how processes share the batches of an epoch, and which samples are in each batch.

Every sample is taken once, with equally many forward passes in each process.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from torch.utils.data import IterableDataset, Sampler


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
