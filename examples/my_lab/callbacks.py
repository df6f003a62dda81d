"""A callback of transformers' own kind."""

from transformers import TrainerCallback


class StopWhenSolved(TrainerCallback):
    def __init__(self, accuracy=1.0):
        self.accuracy = accuracy

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        control.should_training_stop |= metrics["eval_accuracy"] >= self.accuracy
