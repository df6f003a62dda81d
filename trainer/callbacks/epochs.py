"""A state's `epoch`, the number of epochs done with rounding errors, and evaluations at the end of every n-th."""

from __future__ import annotations

import math
from typing import Any

from transformers import TrainerCallback

ROUNDING = 1e-8  # of a fraction of up to a thousand epochs; an epoch of ten million steps moves by more


def is_whole(epoch: float) -> bool:
    """Whether an epoch ends there."""
    return abs(epoch - round(epoch)) < ROUNDING


def epochs_begun(epoch: float) -> int:
    """Return how many epochs have begun, including one that has just ended."""
    return math.ceil(epoch - ROUNDING)


class EveryNEpochs(TrainerCallback):
    """Request an evaluation at the end of every n-th complete epoch, but none before `eval_delay` epochs."""

    def __init__(self, epochs: int):
        self.epochs = epochs

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        cut_short = control.should_training_stop and not is_whole(state.epoch)
        due = epochs_begun(state.epoch) % self.epochs == 0 and state.epoch >= args.eval_delay
        if due and not cut_short:
            control.should_evaluate = True
