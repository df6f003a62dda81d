"""Call methods of the Trainer at moments of training for which transformers' Trainer has no method to override."""

from __future__ import annotations

import math
from typing import Any

from transformers import TrainerCallback


class Hooks(TrainerCallback):
    """The first callback of every run: passes events on to the Trainer, none of them an event of every step."""

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.begin_training()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.begin_epoch()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.end_epoch()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.end_own_evaluation()

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.during_evaluation()


class UpdateAverages(TrainerCallback):
    """Updates the averaged weights after each optimizer step."""

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.skipped_update is not True:
            self.trainer.ema.update(state.global_step + 1)


class FollowTrainingLoss(TrainerCallback):
    """Passes the training loss to a plateau schedule that follows it."""

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.follow_training_loss()


# ---- epochs: a state's `epoch` is their number with rounding errors ----

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
