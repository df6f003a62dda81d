"""Orders of samples: index samplers, mixtures of groups of episodes, and where numbered windows start.

Each order is a pure function of (seed, epoch), so that a resume is exact and all processes draw the same. Windows are
numbered through the whole run (`Numbers`): epoch × samples of an epoch + position. A hash of (seed, n) gives the start
of window n, so that no permutation is stored, and processes that take different numbers take different samples.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


class EpochSampler:
    """The indices of one epoch after another; a subclass implements `order`.

    Args:
        samples: Length of an epoch.
        seed: Of the whole order.
    """

    def __init__(self, samples: int, seed: int):
        self.samples, self.seed = samples, seed
        self.epoch, self.position = 0, 0

    def __len__(self) -> int:
        return self.samples

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def set_position(self, samples_done: int) -> None:
        """The next iteration starts after this many samples; the one after it at 0 again."""
        assert 0 <= samples_done <= self.samples, samples_done
        self.position = samples_done

    def __iter__(self) -> Iterator[int]:
        start, self.position = self.position, 0
        return iter(self.order(np.random.default_rng([self.seed, self.epoch]))[start:].tolist())

    def order(self, generator: np.random.Generator) -> np.ndarray:
        """All indices of the current epoch, (samples,) int64."""
        raise NotImplementedError


class ShuffledSampler(EpochSampler):
    """Every index once an epoch, in random order."""

    def order(self, generator: np.random.Generator) -> np.ndarray:
        return generator.permutation(self.samples)


class Numbers(EpochSampler):
    """The numbers of an epoch's samples, one after another, counted through all epochs.

    It ignores its seed: the data set has it, which turns numbers into samples.
    """

    def __iter__(self) -> Iterator[int]:
        start, self.position = self.position, 0
        first = self.epoch * self.samples
        return iter(range(first + start, first + self.samples))


class WeightedSampler(EpochSampler):
    """Draws with replacement, each index with a probability proportional to its weight.

    Args:
        weights: One for each sample, at least 0 and not all 0.
        samples: Length of an epoch; None: the number of weights.
    """

    def __init__(self, weights: Sequence[float], seed: int, samples: int | None = None):
        self.weights = np.asarray(weights, dtype=np.float64)
        if not (np.isfinite(self.weights).all() and self.weights.min() >= 0 and self.weights.sum() > 0):
            raise ValueError("the weights of samples must be finite, at least 0, and not all 0")
        super().__init__(samples or len(self.weights), seed)

    def order(self, generator: np.random.Generator) -> np.ndarray:
        return generator.choice(len(self.weights), self.samples, p=self.weights / self.weights.sum())


class LengthGroupedSampler(EpochSampler):
    """Every index once an epoch, the samples of each step of similar length, so that batches need little padding.

    The samples are shuffled and sorted by length within pools of `POOL` steps; the steps then are shuffled.

    Args:
        lengths: Of each sample, in any unit.
        step_size: Samples of an optimizer step, over its micro-batches and all processes.
    """

    POOL = 50

    def __init__(self, lengths: Sequence[int], step_size: int, seed: int):
        super().__init__(len(lengths), seed)
        self.lengths, self.step_size = np.asarray(lengths), step_size

    def order(self, generator: np.random.Generator) -> np.ndarray:
        shuffled = generator.permutation(self.samples)
        pools = np.split(shuffled, range(self.POOL * self.step_size, self.samples, self.POOL * self.step_size))
        by_length = np.concatenate([pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools])
        steps = np.split(by_length, range(self.step_size, self.samples, self.step_size))
        # An incomplete step stays last, or later steps would shift.
        incomplete = [steps.pop()] if len(steps[-1]) < self.step_size else []
        return np.concatenate([*(steps[index] for index in generator.permutation(len(steps))), *incomplete])


# ---- groups of episodes ----


class MixtureSampler(EpochSampler):
    """Sample indices of a dataset whose steps are stored episode after episode, group after group.

    Args:
        group_lengths: Of each group (one folder of episodes) the lengths of its episodes, in steps.
        weights: Probability of each group, in any unit; None draws every step equally often.
        episode_first: Draw an episode uniformly, then a step in it, so that short episodes count as much as
            long ones; otherwise draw uniformly over steps. Both go round by round: a round uses every episode
            (or step) of its group once before any comes again.
        samples_per_epoch: Length of an epoch; None for the number of steps.
        seed: Of the whole order.
    """

    def __init__(
        self,
        group_lengths: list[list[int]],
        weights: list[float] | None,
        episode_first: bool,
        samples_per_epoch: int | None,
        seed: int,
    ):
        assert all(group_lengths) and min(map(min, group_lengths)) > 0, "every group needs steps"
        self.lengths = [np.asarray(lengths, dtype=np.int64) for lengths in group_lengths]
        # Without weights one group of all episodes is the plain, exactly uniform case.
        if weights is None:
            self.lengths, weights = [np.concatenate(self.lengths)], [1.0]
        assert len(weights) == len(self.lengths) and min(weights) > 0, weights
        self.probabilities = np.asarray(weights, dtype=np.float64) / np.sum(weights)
        steps = [int(lengths.sum()) for lengths in self.lengths]
        self.group_starts = np.concatenate([[0], np.cumsum(steps)])
        self.episode_first = episode_first
        super().__init__(samples_per_epoch or sum(steps), seed)

    def order(self, generator: np.random.Generator) -> np.ndarray:
        groups = np.zeros(self.samples, dtype=np.int64)
        if len(self.lengths) > 1:
            groups = generator.choice(len(self.lengths), size=self.samples, p=self.probabilities)
        order = np.empty(self.samples, dtype=np.int64)
        for group, lengths in enumerate(self.lengths):
            chosen = np.flatnonzero(groups == group)
            if self.episode_first:  # the steps within episodes independently
                episodes = rounds(len(lengths), len(chosen), generator)
                steps = (np.cumsum(lengths) - lengths)[episodes] + generator.integers(0, lengths[episodes])
            else:
                steps = rounds(int(lengths.sum()), len(chosen), generator)
            order[chosen] = self.group_starts[group] + steps
        return order


def rounds(items: int, count: int, generator: np.random.Generator) -> np.ndarray:
    """Return (count,) numbers below `items`: permutations one after another, the last one cut."""
    whole = -(-count // items)
    permutations = [generator.permutation(items) for _ in range(whole)]
    return np.concatenate([np.empty(0, np.int64), *permutations])[:count]


# ---- where the window of a numbered sample starts ----

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
