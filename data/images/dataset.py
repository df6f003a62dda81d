"""Samples and batches of images.

Shapes: N images, B of a batch, C channels, S pixels of a side, L labels.

A batch is {"pixel_values": (B, C, S, S) float32 normalised, "labels": (B, L) float32 of 0 and 1, or (B,) int64}.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from data.images.decode import Decoder

Fetched = tuple[np.ndarray, np.ndarray]


class CachedImages(torch.utils.data.Dataset):
    """Images decoded before, as rows of a memory-mapped array.

    Args:
        path: A .npy file (N, C, S, S) uint8; opened in each process for itself.
        labels: (N, L) float32 or (N,) int64.
        names: Of the images, for messages.
    """

    def __init__(self, path: str, labels: np.ndarray, names: Sequence[str]):
        self.path, self.labels, self.names = path, labels, names
        self._array: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_array": None}

    def __getitems__(self, indices: Sequence[int]) -> Fetched:
        if self._array is None:
            self._array = np.load(self.path, mmap_mode="r")
        return self._array[list(indices)], self.labels[list(indices)]

    def __getitem__(self, index: int) -> Fetched:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def where(self, index: int) -> str:
        return self.names[index]


class DecodedImages(CachedImages):
    """Images decoded each time, by several threads."""

    def __init__(self, images: Sequence[Any], labels: np.ndarray, decoder: Decoder, threads: int):
        super().__init__("", labels, [str(image) for image in images])
        self.images, self.decoder, self.threads = images, decoder, threads
        self.pool: ThreadPoolExecutor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "pool": None}

    def __getitems__(self, indices: Sequence[int]) -> Fetched:
        if self.pool is None:
            self.pool = ThreadPoolExecutor(self.threads)
        images = list(self.pool.map(self.decoder, [self.images[index] for index in indices]))
        return np.stack(images), self.labels[list(indices)]


class Collate:
    """What a data set fetched -> a batch; picklable for workers.

    Args:
        mean, std: Of each channel, in units of full brightness.
        flips_channels: Red, green, blue become blue, green, red, before anything else.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], flips_channels: bool = False):
        self.mean, self.std, self.flips_channels = tuple(mean), tuple(std), flips_channels

    def __call__(self, fetched: Fetched | list[Fetched]) -> dict[str, torch.Tensor]:
        images, labels = fetched if isinstance(fetched, tuple) else map(np.stack, zip(*fetched, strict=True))
        return {
            "pixel_values": self.normalised(torch.from_numpy(np.ascontiguousarray(images))),
            "labels": torch.from_numpy(labels),
        }

    def normalised(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, S, S) uint8 -> float32"""
        images = images.flip(1) if self.flips_channels else images
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return images.float().sub_(255 * mean).div_(255 * std)
