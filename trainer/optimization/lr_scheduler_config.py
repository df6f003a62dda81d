"""A learning-rate schedule as plain values."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import Any

from transformers.trainer_utils import SchedulerType

# transformers' names without a warm-up of their own: one is put before them, as before torch's classes.
WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")
FOLLOWS_METRIC = ("reduce_lr_on_plateau", "greedy", "ReduceLROnPlateau")
TRAINING_LOSS = ("loss", "train_loss", "train/loss")


@dataclass(frozen=True)
class LRSchedulerConfig:
    """A schedule as plain values.

    Options that are not given: CosineAnnealingLR's `T_max`, PolynomialLR's `total_iters` and OneCycleLR's `total_steps`
    are the length from the end of the warm-up to the horizon, in units of the interval (inside a SequentialLR, up to
    the next milestone); `max_lr` of OneCycleLR and CyclicLR is the learning rate; ReduceLROnPlateau has factor 0.5,
    patience 5, threshold 1e-3; `gamma` of an ExponentialLR leads to `min_lr` at the horizon.
    """

    name: str
    "A lr_scheduler_type of transformers, or a class of torch.optim.lr_scheduler (exact case)."
    options: dict[str, Any] = field(default_factory=dict)
    "Constructor arguments. SequentialLR, ChainedScheduler: `schedulers`, a list of {name, …}; and `milestones`."
    interval: str | None = None
    "`step` or `epoch`; None is `step`. transformers' names advance by step."
    frequency: int = 1
    "The schedule advances after this many intervals; one that follows a metric, after this many evaluations."
    monitor: str | None = None
    "The metric that a plateau follows; None: the evaluation loss."
    warmup_steps: float = 0
    "Steps of linear warm-up from 0; below 1 the share of all steps."
    warmup_epochs: float = 0
    "The same in epochs; one of the two."
    min_lr: float | None = None
    "The decay ends here, or never goes below; a group with another learning rate has it in proportion."
    decay_steps: int | None = None
    "The schedule's length in steps, warm-up included, instead of the run's; afterwards the rate is constant."
    learning_rate: float = 1e-3
    "The run's learning rate; a group may have another one."
    new_length: str | None = None
    "If a resumed run has another length: `keep` or `rebase` the schedule; None: the length must make no difference."
    takes_over: bool = False
    "The checkpoint may have another schedule: this one continues at its step."

    @property
    def follows_metric(self) -> bool:
        return self.name in FOLLOWS_METRIC

    @property
    def needs_metric(self) -> str | None:
        """The metric that the schedule follows; None: it follows none."""
        return (self.monitor or "eval_loss") if self.follows_metric else None

    @property
    def follows_training_loss(self) -> bool:
        """Whether the metric is the loss of training rather than a metric of evaluation."""
        return self.needs_metric in TRAINING_LOSS

    @property
    def has_own_warmup(self) -> bool:
        return is_trainer_schedule(self.name) and self.name not in WITHOUT_WARMUP

    def warmup_length(self, total_steps: int, steps_per_epoch: int) -> int:
        """Steps of warm-up; a share is rounded up, as TrainingArguments does."""
        if self.warmup_epochs:
            return round(self.warmup_epochs * steps_per_epoch)
        return int(self.warmup_steps) if self.warmup_steps >= 1 else math.ceil(total_steps * self.warmup_steps)


@functools.cache
def is_trainer_schedule(name: str) -> bool:
    """Whether this is a lr_scheduler_type of transformers."""
    return name in {kind.value for kind in SchedulerType}
