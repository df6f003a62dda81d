"""Standardise channels by statistics of the training split, computed a block at a time.

Shapes: C channels, n rows of a block.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data.cache import key_of, open_or_build
from data.signals.preparing import BLOCK_VALUES, Prepared
from data.signals.splits import Stretch

QUARTILES_OF_NORMAL = 1.3489795  # distance of the quartiles of a standard normal distribution
SAMPLED_VALUES = 2**24  # of the training split, for medians and quartiles
SAMPLED_BLOCK = 1024  # rows read together


@dataclass(frozen=True)
class Scaling:
    """(x - shift) / scale per channel, in the files' units, clipped to ± clip."""

    shift: np.ndarray  # (C,) float64
    scale: np.ndarray
    clip: float | None

    def __call__(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """(n, C) float32 in the files' units -> float32; NaN stays."""
        shift, factor = self._single
        values = np.subtract(rows, shift, out=out)
        values *= factor
        return values if self.clip is None else np.clip(values, -self.clip, self.clip, out=values)

    @cached_property
    def _single(self) -> tuple[np.ndarray, np.ndarray]:
        return self.shift.astype(np.float32), (1 / self.scale).astype(np.float32)


def fit(
    kind: str, files: Sequence[Prepared], columns: Sequence[np.ndarray], stretches: list[Stretch], cache: Path
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """(shift, scale) of each channel, (C,) float64, and which channels are constant and therefore not scaled.

    Kept in the cache, since it reads the whole training split.
    """
    count = len(columns[0])
    if kind == "none":
        return np.zeros(count), np.ones(count), []
    described = {
        "kind": kind,
        "files": [file.path for file in files],
        "columns": [indices.tolist() for indices in columns],
        "stretches": [list(asdict(stretch).values()) for stretch in stretches],
    }

    def build(folder: Path) -> dict[str, Any]:
        blocks = blocks_of(files, columns, stretches, SAMPLED_VALUES if kind == "robust" else None)
        shift, scale = quartiles(blocks) if kind == "robust" else moments(blocks, count)
        is_usable = np.isfinite(scale) & (scale > 0)  # a channel that is constant, or missing, in training
        return {
            "shift": np.nan_to_num(shift).tolist(),
            "scale": np.where(is_usable, scale, 1.0).tolist(),
            "constant": np.flatnonzero(~is_usable).tolist(),
        }

    _, saved = open_or_build(cache, f"scale-{key_of(described)}", build)
    return np.array(saved["shift"]), np.array(saved["scale"]), saved["constant"]


def blocks_of(
    files: Sequence[Prepared], columns: Sequence[np.ndarray], stretches: list[Stretch], most_values: int | None
) -> Iterator[np.ndarray]:
    """(n, C) float32 blocks of the stretches, NaN where missing; with `most_values` evenly spread blocks, or all."""
    count = len(columns[0])
    rows = sum(stretch.stop - stretch.start for stretch in stretches)
    skip = 1 if most_values is None else -(-rows * count // most_values)
    size = SAMPLED_BLOCK if skip > 1 else max(1, BLOCK_VALUES // count)
    number = 0
    for stretch in stretches:
        array = files[stretch.file].array()
        for start in range(stretch.start, stretch.stop, size):
            if number % skip == 0:
                yield aligned(array[start : min(start + size, stretch.stop)], columns[stretch.file])
            number += 1


def aligned(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(n, channels of the file) -> (n, C), NaN in channels that the file lacks (column -1)."""
    return np.where(columns < 0, np.float32(np.nan), rows[:, columns])


def moments(blocks: Iterator[np.ndarray], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation, combined from blocks (Chan, Golub and LeVeque 1979)."""
    total, mean, squares = np.zeros(count), np.zeros(count), np.zeros(count)
    for block in blocks:
        known = ~np.isnan(block)
        number = known.sum(0)
        block_mean = np.where(known, block, 0).sum(0, dtype=np.float64) / np.maximum(number, 1)
        deviations = np.where(known, block - block_mean, 0)
        grown = np.maximum(total + number, 1)
        difference = block_mean - mean
        squares += (deviations**2).sum(0) + difference**2 * total * number / grown
        mean, total = mean + difference * number / grown, total + number
    return mean, np.sqrt(squares / np.maximum(total, 1))


def quartiles(blocks: Iterator[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Median, and distance of the quartiles as a multiple of a normal distribution's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a channel without a value: NaN
        low, median, high = np.nanpercentile(np.concatenate(list(blocks)), [25, 50, 75], axis=0)
    return median.astype(np.float64), (high - low).astype(np.float64) / QUARTILES_OF_NORMAL
