"""Batches that know the indices of their samples, so that a step that is not finite can name them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch


class Fetched(NamedTuple):
    """The samples that a data set returned, and their indices."""

    indices: Any
    samples: Any


class IndexedSamples(torch.utils.data.Dataset):
    """A map-style data set that returns indices with its samples; other attributes are those of the data set."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Fetched:
        return Fetched([index], self.dataset[index])

    def __getitems__(self, indices: Sequence[Any]) -> Fetched:
        whole = getattr(self.dataset, "__getitems__", None)
        if isinstance(indices[0], int) and indices[0] < 0:  # a batch that only keeps a process in step
            return Fetched([-1], self.__getitems__([-1 - indices[0]]).samples)
        return Fetched(indices, whole(indices) if whole else [self.dataset[index] for index in indices])

    def __getattr__(self, name: str) -> Any:
        if name == "dataset" or name.startswith("__"):  # not set yet while unpickling
            raise AttributeError(name)
        return getattr(self.dataset, name)


class IndexedCollate:
    """Adds `sample_index` to the batches of `collate`: (batch,) int64, -1 for a sample that does not count.

    It is picklable for workers if `collate` is.
    """

    KEY = "sample_index"

    def __init__(self, collate: Callable[[Any], dict[str, Any]]):
        self.collate = collate

    def __call__(self, fetched: Any) -> dict[str, Any]:
        if not isinstance(fetched, Fetched):  # an iterable data set: its samples have no index
            return self.collate(fetched)
        batch = self.collate(fetched.samples)
        return {**batch, self.KEY: torch.as_tensor(fetched.indices, dtype=torch.int64).flatten()}
