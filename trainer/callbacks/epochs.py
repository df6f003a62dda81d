"""Interpret a state's `epoch`: the number of epochs done, a fraction with rounding errors."""

import math

ROUNDING = 1e-8  # of a fraction of up to a thousand epochs; an epoch of ten million steps moves by more


def is_whole(epoch: float) -> bool:
    """Whether an epoch ends there."""
    return abs(epoch - round(epoch)) < ROUNDING


def epochs_begun(epoch: float) -> int:
    """Return how many epochs have begun, including one that has just ended."""
    return math.ceil(epoch - ROUNDING)
