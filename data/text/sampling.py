"""Which data set each step is on, where there are several: drawn, or interleaved in given proportions."""

from __future__ import annotations

import bisect
import itertools
import math
from dataclasses import dataclass

from data.samplers import random_number
from data.text.config import whole_proportions


def interleaving(shares: list[int]) -> list[int]:
    """Return a pattern of sum(shares) turns that keeps to the proportions p_i = shares[i] / sum(shares).

    After any number k of turns, i has had more than k × p_i - 1 and less than k × p_i + 1 of them.

    Turn number k may be i's (j + 1)-th only if k > j / p_i, and must have been by k = (j + 1) / p_i, rounded up; of
    those that may come, the most urgent one comes. Such a pattern always exists and this rule finds it (Tijdeman 1980,
    "The chairman assignment problem").
    """
    whole, had, pattern = sum(shares), [0] * len(shares), []
    for turn in range(whole):
        due = [
            (-(-(had[number] + 1) * whole // share), number)
            for number, share in enumerate(shares)
            if had[number] * whole < (turn + 1) * share
        ]
        chosen = min(due)[1]
        had[chosen] += 1
        pattern.append(chosen)
    return pattern


def probabilities(
    first: list[float], final: list[float] | None, transition: str | None, progress: float
) -> list[float]:
    """Return the probability of each data set when `progress` (0 to 1) of the run is done."""
    if final is None:
        return first
    if transition == "exponential":
        moved = [start * (end / start) ** progress for start, end in zip(first, final, strict=True)]
        return [value / sum(moved) for value in moved]
    share = (1 - math.cos(math.pi * progress)) / 2 if transition == "cosine" else progress
    return [start + (end - start) * share for start, end in zip(first, final, strict=True)]


@dataclass(frozen=True)
class Drawn:
    """The data set of each step is drawn, with the probabilities at that time.

    `steps` are those of the whole run; they matter only if there are final probabilities.
    """

    seed: int
    first: list[float]
    final: list[float] | None = None
    transition: str | None = None
    steps: int = 1

    def __call__(self, step: int) -> int:
        """Number of the data set of step `step`."""
        uniform = random_number(self.seed, "data set", step) / 2**64
        progress = min(1.0, step / self.steps)
        reached = list(itertools.accumulate(probabilities(self.first, self.final, self.transition, progress)))
        # The quotient may round up to 1; from the right, so that a data set of probability 0 is never chosen.
        return bisect.bisect_right(reached, min(uniform, 1 - 2**-53) * reached[-1])


@dataclass(frozen=True)
class Interleaved:
    """The data sets alternate in a repeated pattern: after k steps each has had k × its share to within one."""

    pattern: list[int]

    @classmethod
    def of(cls, first: list[float]) -> Interleaved:
        return cls(interleaving(whole_proportions(first)))

    def __call__(self, step: int) -> int:
        """Number of the data set of step `step`."""
        return self.pattern[step % len(self.pattern)]

    def earlier(self, step: int) -> int:
        """Return how many steps before `step` were on its data set."""
        rounds, place = divmod(step, len(self.pattern))
        data_set = self.pattern[place]
        return rounds * self.pattern.count(data_set) + self.pattern[:place].count(data_set)
