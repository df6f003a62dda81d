"""Interleave data sets in given proportions."""

from __future__ import annotations

import math
from fractions import Fraction

LONGEST_PATTERN = 10_000  # turns; how finely proportions may be given
TOLERANCE = 1e-6


def whole_proportions(values: list[float]) -> list[int]:
    """Return whole numbers in the same proportions: [0.5, 0.25, 0.25] -> [2, 1, 1]; 0.333333 counts as a third.

    Raises:
        ValueError: The smallest such numbers sum to more than LONGEST_PATTERN.
    """
    exact = [Fraction(value).limit_denominator(LONGEST_PATTERN) for value in values]
    near = all(abs(value - share) <= TOLERANCE for value, share in zip(values, exact, strict=True))
    whole = math.lcm(*(share.denominator for share in exact))
    if not near or sum(exact) != 1 or whole > LONGEST_PATTERN:
        raise ValueError(
            f"make no pattern of at most {LONGEST_PATTERN:,} batches, as interleaving needs; round them, to four "
            "decimals or fewer"
        )
    return [int(share * whole) for share in exact]


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
