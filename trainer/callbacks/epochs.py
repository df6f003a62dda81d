"""What a state's `epoch` says: epochs done, as a fraction that carries its rounding."""

import math

ROUNDING = 1e-8  # of a fraction of up to a thousand epochs; an epoch of ten million steps moves by more


def is_whole(epoch: float) -> bool:
    """Whether an epoch has come to its end there."""
    return abs(epoch - round(epoch)) < ROUNDING


def epochs_begun(epoch: float) -> int:
    """How many epochs have been begun, the one that has just ended among them."""
    return math.ceil(epoch - ROUNDING)
