"""Compute from a sample's number where its window starts.

Samples are numbered through the whole run: epoch × samples of an epoch + position. A hash of (seed, n) gives sample n,
so that no permutation is stored: a run of any length is resumed at once, and processes that take different numbers take
different samples. `data.samplers.Numbers` yields the numbers.
"""

from __future__ import annotations

import functools
import hashlib
import math
from dataclasses import dataclass

import numpy as np

# SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", figure 17).
STEP, FIRST, SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
BY_30, BY_27, BY_31 = np.uint64(30), np.uint64(27), np.uint64(31)
GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


def random_number(*what: int | str) -> int:
    """Return one of 0 … 2^64 - 1, a function of `what` alone: a seed, the purpose of the number, and its index."""
    words = " ".join(map(str, what))
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "little")


def random_numbers(key: np.uint64, numbers: np.ndarray) -> np.ndarray:
    """Return the `numbers`-th members (uint64) of the sequence that begins at `key`, each uniform over 0 … 2^64 - 1."""
    state = numbers * STEP + key  # unsigned products and sums wrap around, as they should
    state = (state ^ (state >> BY_30)) * FIRST
    state = (state ^ (state >> BY_27)) * SECOND
    return state ^ (state >> BY_31)


@dataclass(frozen=True)
class RandomStarts:
    """Every window of the data equally often, drawn with replacement."""

    seed: int

    def __call__(self, numbers: np.ndarray, tokens: int, block_size: int) -> np.ndarray:
        """First tokens (B,) of the samples `numbers` (B,) uint64.

        A remainder favours small values by at most one part in 2^64 / tokens: a millionth for 18 million million.
        """
        return random_numbers(self.key, numbers) % np.uint64(tokens - block_size)

    @functools.cached_property
    def key(self) -> np.uint64:
        return np.uint64(random_number(self.seed, "window"))


@dataclass(frozen=True)
class StoredStarts:
    """One window after another; after the last whole one, from the start again."""

    def __call__(self, numbers: np.ndarray, tokens: int, block_size: int) -> np.ndarray:
        """First tokens (B,) of the samples `numbers` (B,) uint64."""
        return numbers % np.uint64((tokens - 1) // block_size) * np.uint64(block_size)


def spread_stride(count: int) -> int:
    """Return a stride through `count` windows, near the golden section and coprime to `count`.

    i × stride % count visits each window once, and the first few of them lie evenly over the whole.
    """
    near = max(1, round(count * GOLDEN_RATIO))
    return next(near + away for away in range(count + 1) if math.gcd(near + away, count) == 1)
