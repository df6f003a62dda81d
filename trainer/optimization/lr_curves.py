"""A learning-rate schedule as plain values, and the scheduler objects of transformers and torch that it describes.

The rates come from a stand-in optimizer, so that a floor, a warm-up or a frozen end never feeds back into a schedule
that computes its next rate from its last one.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch.optim import lr_scheduler
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


# The option that says where the decay ends, for names that have one: `min_lr` is given to it.
END_OPTION = {"polynomial": "lr_end", "cosine_with_min_lr": "min_lr", "cosine_warmup_with_min_lr": "min_lr"}
# Where torch's default is not what a reader of the configuration would expect.
PLATEAU_DEFAULTS = {"factor": 0.5, "patience": 5, "threshold": 1e-3}
# State of torch's plateau and of transformers' greedy schedule.
METRIC_STATE = ("best", "num_bad_epochs", "num_good_epochs", "cooldown_counter", "warmup_counter", "reset_start")


def stand_in_for(
    base_lrs: Sequence[float], rate: float, optimizer: torch.optim.Optimizer | None = None
) -> torch.optim.Optimizer:
    """An optimizer of nothing, with groups at the base rates and the momenta of the real one."""
    groups = [{"params": [torch.zeros(())], "lr": base} for base in base_lrs]
    stand_in = torch.optim.SGD(groups, lr=rate, momentum=0.9)
    stand_in.base_lrs = list(base_lrs)  # schedules inside others change what the groups call their initial rate
    if optimizer is not None:
        stand_in.defaults.pop("momentum")
        for key in ("momentum", "betas"):
            if key in optimizer.defaults:
                stand_in.defaults[key] = optimizer.defaults[key]
            for group, real in zip(stand_in.param_groups, optimizer.param_groups, strict=True):
                if key in real:
                    group[key] = real[key]
    return stand_in


def scheduler_with_warmup(
    plan: LRSchedulerConfig, stand_in: torch.optim.Optimizer, warmup: int, horizon: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """A schedule of transformers with its own warm-up; `warmup` and `horizon` are in steps."""
    options = dict(plan.options)
    if plan.min_lr is not None and plan.name in END_OPTION:
        options.setdefault(END_OPTION[plan.name], plan.min_lr)
    return transformers.get_scheduler(plan.name, stand_in, warmup, horizon, options)


def scheduler_without_warmup(
    plan: LRSchedulerConfig, stand_in: torch.optim.Optimizer, moves: int, rate: float
) -> torch.optim.lr_scheduler.LRScheduler:
    """A class of torch, or a schedule of transformers that has no warm-up.

    Args:
        moves: How often it will advance in the whole run.
        rate: The run's learning rate.
    """
    options = dict(plan.options)
    if plan.name == "ExponentialLR" and plan.min_lr and rate:
        options.setdefault("gamma", (plan.min_lr / rate) ** (1 / moves))
    scheduler = _scheduler(plan.name, options, stand_in, moves, rate)
    stand_in.step()  # torch asks for the optimizer's step before the scheduler's
    return scheduler


def _scheduler(name: str, options: dict[str, Any], stand_in: torch.optim.Optimizer, moves: int, rate: float) -> Any:
    """The scheduler, with what the options leave out."""
    if is_trainer_schedule(name):
        return transformers.get_scheduler(name, stand_in, scheduler_specific_kwargs=options)
    kind = getattr(lr_scheduler, name, None)
    if not (isinstance(kind, type) and issubclass(kind, lr_scheduler.LRScheduler)):
        raise ValueError(f"there is no class torch.optim.lr_scheduler.{name}")
    if name == "ReduceLROnPlateau":
        options = PLATEAU_DEFAULTS | options
    elif name == "CosineAnnealingLR":
        options.setdefault("T_max", moves)
    elif name == "PolynomialLR":
        options.setdefault("total_iters", moves)
    elif name == "OneCycleLR" and not {"total_steps", "epochs"} & set(options):
        options["total_steps"] = moves + 1  # its first step is number 0, and the run advances `moves` times
    elif name in ("SequentialLR", "ChainedScheduler"):
        options["schedulers"] = _inner_schedulers(name, options, stand_in, moves, rate)
    if name in ("OneCycleLR", "CyclicLR"):
        _scale_to_groups(options, stand_in, rate)
    return kind(optimizer=stand_in, **options)


def _inner_schedulers(
    name: str, options: dict[str, Any], stand_in: torch.optim.Optimizer, moves: int, rate: float
) -> list[Any]:
    """The schedules inside a SequentialLR, each up to its milestone, or a ChainedScheduler."""
    entries, milestones = options.get("schedulers"), options.get("milestones", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "name" in entry for entry in entries):
        raise ValueError("`schedulers` must be a list of entries with a name, {name: StepLR, …}")
    if any(entry["name"] in FOLLOWS_METRIC or is_trainer_schedule(entry["name"]) for entry in entries):
        raise ValueError("`schedulers` can only contain classes of torch.optim.lr_scheduler that follow no metric")
    if name == "SequentialLR":
        is_rising = isinstance(milestones, list) and milestones == sorted(
            {step for step in milestones if isinstance(step, int) and step > 0}
        )
        if not is_rising or len(milestones) != len(entries) - 1:
            raise ValueError(f"`milestones` must be {len(entries) - 1} rising whole numbers above 0, not {milestones}")
        ends = [*milestones, max(moves, milestones[-1] + 1 if milestones else 1)]
        lengths = [end - start for start, end in zip([0, *milestones], ends, strict=True)]
    else:
        lengths = [moves] * len(entries)
    return [
        _scheduler(entry["name"], {key: entry[key] for key in entry if key != "name"}, stand_in, length, rate)
        for entry, length in zip(entries, lengths, strict=True)
    ]


def _scale_to_groups(options: dict[str, Any], stand_in: torch.optim.Optimizer, rate: float) -> None:
    """Bounds that these classes take as absolute rates: for every group in proportion to its base rate."""
    options.setdefault("max_lr", rate)
    for key in ("max_lr", "base_lr"):
        if isinstance(options.get(key), (int, float)):
            options[key] = [options[key] * (base / rate) for base in stand_in.base_lrs]


# ---- schedules that follow a metric ----


def observe_metric(scheduler: Any, value: float) -> None:
    """Pass a value of the metric to a scheduler; one that is not finite counts as no improvement."""
    value = value if math.isfinite(value) else math.nan
    averages = getattr(scheduler, "smooth", False)
    if averages and math.isnan(value):  # a running average would never recover from it
        scheduler.smooth = False
    scheduler.step(value)
    if averages:
        scheduler.smooth = True


def metric_state(scheduler: Any, stand_in: torch.optim.Optimizer) -> dict[str, Any]:
    """JSON values of a scheduler's state, and the rates that it has reached."""
    state = {name: getattr(scheduler, name) for name in METRIC_STATE if hasattr(scheduler, name)}
    if math.isinf(state["best"]):  # no value yet; JSON has no infinity
        state["best"] = None
    average = getattr(scheduler, "_streaming_avg", None)
    rates = [float(group["lr"]) for group in stand_in.param_groups]
    return state | {"rates": rates, "average": average.state_dict() if average else None}


def load_metric_state(
    scheduler: Any, stand_in: torch.optim.Optimizer, state: dict[str, Any], scales: Sequence[float]
) -> None:
    """Load what `metric_state` returned; `scales` are factors for the rates of groups whose base rate has changed."""
    for name in METRIC_STATE:
        if state.get(name) is not None:
            setattr(scheduler, name, state[name])
    if state.get("average") is not None:
        scheduler._streaming_avg.load_state_dict(copy.deepcopy(state["average"]))
    for group, rate, scale in zip(stand_in.param_groups, state["rates"], scales, strict=False):  # a preview has one
        group["lr"] = rate * scale
