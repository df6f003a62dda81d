"""A learning rate schedule as plain values, and whether its names and numbers can be meant."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
from dataclasses import dataclass, field
from typing import Any

import transformers
from torch.optim import lr_scheduler
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from transformers.trainer_utils import SchedulerType

# transformers' names without a warm-up of their own: one is put before them, as before torch's classes.
WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")
FOLLOWS_METRIC = ("reduce_lr_on_plateau", "greedy", "ReduceLROnPlateau")
SAME_AS_MIN_LR = ("lr_end", "min_lr", "min_lr_rate", "min_lr_ratio")
UNFIT = {
    "LambdaLR": "takes a function, which YAML cannot write",
    "MultiplicativeLR": "takes a function, which YAML cannot write",
    "LRScheduler": "is only the base of the others",
}
FILLED = ("T_max", "max_lr")  # required by torch, known here
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
    "Constructor's arguments. SequentialLR, ChainedScheduler: `schedulers`, a list of {name, …}; and `milestones`."
    interval: str | None = None
    "`step` or `epoch`; None is `step`. transformers' names go by step."
    frequency: int = 1
    "The schedule moves on after this many intervals; one that follows a metric, after this many evaluations."
    monitor: str | None = None
    "The metric that a plateau follows; None: the evaluation loss."
    warmup_steps: float = 0
    "Steps of linear warm-up from 0; below 1 the share of all steps."
    warmup_epochs: float = 0
    "The same in epochs; one of the two."
    min_lr: float | None = None
    "Decay ends here, or never goes below; a group with another learning rate has it in proportion."
    decay_steps: int | None = None
    "The schedule's length in steps, warm-up included, instead of the run's; afterwards the rate stays."
    learning_rate: float = 1e-3
    "The run's learning rate, of which a group's own may differ."
    new_length: str | None = None
    "A resumed run with another length: `keep` its course, or `rebase` what is left of it; None: it must not matter."
    takes_over: bool = False
    "The checkpoint may have another schedule: this one continues at its step."

    @property
    def follows_metric(self) -> bool:
        return self.name in FOLLOWS_METRIC

    def filled(self, units: int = 1, rate: float | None = None) -> dict[str, Any]:
        """The options, with what follows from the plan's other values; `units`: how often it will move on."""
        rate = self.learning_rate if rate is None else rate
        if self.name != "ExponentialLR" or "gamma" in self.options or not self.min_lr or not rate:
            return dict(self.options)
        return {**self.options, "gamma": (self.min_lr / rate) ** (1 / units)}

    @property
    def warms_up_itself(self) -> bool:
        return is_trainer_schedule(self.name) and self.name not in WITHOUT_WARMUP

    def warmup_length(self, total_steps: int, steps_per_epoch: int) -> int:
        """Steps of warm-up; a share is rounded up, as TrainingArguments does."""
        if self.warmup_epochs:
            return round(self.warmup_epochs * steps_per_epoch)
        return int(self.warmup_steps) if self.warmup_steps >= 1 else math.ceil(total_steps * self.warmup_steps)


# ---- names ----


@functools.cache
def is_trainer_schedule(name: str) -> bool:
    """Whether this is a lr_scheduler_type of transformers."""
    return name in {each.value for each in SchedulerType}


def is_training_loss(monitor: str | None) -> bool:
    """Whether a plateau with this monitor follows the loss of training rather than a metric of evaluation."""
    return monitor in TRAINING_LOSS


def torch_schedules() -> dict[str, type]:
    """Class name -> class, of torch.optim.lr_scheduler."""
    base = lr_scheduler.LRScheduler
    found = {
        name: kind for name, kind in vars(lr_scheduler).items() if isinstance(kind, type) and not name.startswith("_")
    }
    return {name: kind for name, kind in found.items() if issubclass(kind, base)}


def taken_options(name: str) -> dict[str, inspect.Parameter]:
    """The options that a schedule takes, name -> parameter."""
    if name == "reduce_lr_on_plateau":
        called: Any = lr_scheduler.ReduceLROnPlateau
    elif name == "greedy":
        called = transformers.optimization.GreedyLR
    elif is_trainer_schedule(name):
        called = TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(name)]
    else:
        called = torch_schedules()[name]
    given = {"optimizer", "last_epoch", "num_warmup_steps", "num_training_steps"}
    return {each: value for each, value in inspect.signature(called).parameters.items() if each not in given}


# ---- checks ----


def check_names(plan: LRSchedulerConfig) -> None:
    """The part of `check_plan` that concerns names of schedules and of their options."""
    _check_one(plan.name, plan.filled())
    if plan.interval not in (None, "step", "epoch"):
        raise ValueError(f"schedule `{plan.name}` has the interval `{plan.interval}`; it is step or epoch")
    if plan.monitor is not None and not plan.follows_metric:
        raise ValueError(f"schedule `{plan.name}` follows no metric, so `monitor: {plan.monitor}` has no effect")
    by_step_only = is_trainer_schedule(plan.name) and not plan.follows_metric
    if by_step_only and (plan.interval == "epoch" or plan.frequency != 1):
        raise ValueError(
            f"schedule `{plan.name}` goes by single steps; a torch.optim.lr_scheduler class can go by epochs"
        )


def _check_one(name: str, options: dict[str, Any]) -> None:
    known = [each.value for each in SchedulerType] + [
        torch_schedule for torch_schedule in torch_schedules() if torch_schedule not in UNFIT
    ]
    if name in UNFIT:
        raise ValueError(f"schedule `{name}` {UNFIT[name]}; there are {', '.join(known)}")
    if name not in known:
        folded = {each.lower(): each for each in known}
        match = folded.get(str(name).lower()) or next(iter(difflib.get_close_matches(str(name), known, n=1)), None)
        remedy = f"did you mean `{match}`?" if match else f"there are {', '.join(known)}"
        raise ValueError(
            f"schedule `{name}` is neither a lr_scheduler_type nor a torch.optim.lr_scheduler class; {remedy}"
        )
    takes = taken_options(name)
    for option in options:
        if option not in takes:
            match = next(iter(difflib.get_close_matches(option, list(takes), n=1)), None)
            hint = f"did you mean `{match}`? It takes" if match else "it takes"
            raise ValueError(f"schedule `{name}` takes no `{option}`; {hint} {', '.join(takes) or 'no options'}")
    needed = [each for each, value in takes.items() if value.default is value.empty and each not in FILLED]
    missing = [each for each in needed if each not in options]
    if missing:
        hint = ", or min_lr to fall to" if name == "ExponentialLR" else ""
        raise ValueError(f"schedule `{name}` needs the option `{missing[0]}` (scheduler.{missing[0]}){hint}")
    if "schedulers" in takes:
        _check_list(name, options)


def _check_list(name: str, options: dict[str, Any]) -> None:
    """The schedules inside a SequentialLR or ChainedScheduler."""
    inner = options["schedulers"]
    if not isinstance(inner, list) or not inner or not all(isinstance(each, dict) and "name" in each for each in inner):
        raise ValueError(f"schedule `{name}` takes `schedulers` as a list of entries with a name, {{name: StepLR, …}}")
    for each in inner:
        if each["name"] in FOLLOWS_METRIC or is_trainer_schedule(each["name"]):
            raise ValueError(
                f"schedule `{each['name']}` cannot be inside a `{name}`; name classes of torch.optim.lr_scheduler"
            )
        _check_one(each["name"], {option: value for option, value in each.items() if option != "name"})
    if "milestones" in options:
        stones = options["milestones"]
        if not isinstance(stones, list) or len(stones) != len(inner) - 1:
            raise ValueError(
                f"schedule `{name}` has {len(inner)} schedules and needs {len(inner) - 1} milestones, not {stones}"
            )
        if not all(isinstance(stone, int) and stone > 0 for stone in stones) or stones != sorted(set(stones)):
            raise ValueError(f"schedule `{name}` needs rising whole numbers above 0 as milestones, not {stones}")


def check_numbers(plan: LRSchedulerConfig) -> None:
    name = plan.name
    if plan.warmup_steps and plan.warmup_epochs:
        raise ValueError(f"schedule `{name}` has a warm-up in steps and one in epochs; keep one")
    if plan.warmup_steps < 0 or plan.warmup_epochs < 0:
        raise ValueError(f"schedule `{name}` has a warm-up below 0")
    if plan.warmup_steps >= 1 and plan.warmup_steps != int(plan.warmup_steps):
        raise ValueError(
            f"schedule `{name}` warms up for {plan.warmup_steps:g} steps; give a whole number, or a share below 1"
        )
    if plan.frequency < 1:
        raise ValueError(f"schedule `{name}` has the frequency {plan.frequency}; give 1 or more")
    if plan.decay_steps is not None and plan.decay_steps <= max(0, plan.warmup_steps):
        raise ValueError(
            f"schedule `{name}` ends after {plan.decay_steps} steps; give more than the warm-up ({plan.warmup_steps:g})"
        )
    if plan.min_lr is None:
        return
    if not 0 <= plan.min_lr <= plan.learning_rate:
        raise ValueError(f"min_lr {plan.min_lr:g} is not between 0 and the learning rate, {plan.learning_rate:g}")
    twice = [each for each in SAME_AS_MIN_LR if each in plan.options] if is_trainer_schedule(name) else []
    if twice and not plan.follows_metric:
        raise ValueError(f"schedule `{name}` has its end from `min_lr` and from its option `{twice[0]}`; keep one")
