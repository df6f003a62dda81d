"""Batches of an evaluation by several processes: every sample once, and equally many forward passes in each process."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from torch.utils.data import Sampler


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
