"""The indices of the samples in each training batch, known without a word in the batch itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from torch.utils.data import IterableDataset


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
