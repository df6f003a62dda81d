"""Call methods of the Trainer at moments of training for which transformers' Trainer has no method to override."""

from __future__ import annotations

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
