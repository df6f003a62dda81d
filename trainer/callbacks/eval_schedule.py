"""When to evaluate: at the end of every n-th epoch."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from trainer.callbacks.epochs import epochs_begun, is_whole


class EveryNEpochs(TrainerCallback):
    """Request an evaluation at the end of every n-th complete epoch, but none before `eval_delay` epochs."""

    def __init__(self, epochs: int):
        self.epochs = epochs

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        cut_short = control.should_training_stop and not is_whole(state.epoch)
        due = epochs_begun(state.epoch) % self.epochs == 0 and state.epoch >= args.eval_delay
        if due and not cut_short:
            control.should_evaluate = True
