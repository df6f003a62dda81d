"""Index samplers for any kind of data. Their order is a pure function of (seed, epoch), so that a resume is exact."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
        incomplete = (
            [steps.pop()] if len(steps[-1]) < self.step_size else []
        )  # it stays last, or later steps would shift
        return np.concatenate([*(steps[index] for index in generator.permutation(len(steps))), *incomplete])
