"""The course of a learning rate, as transformers' functions and torch's classes have it: how often moved on -> rates.

The rates come from a stand-in optimizer, so that a floor, a warm-up or a frozen end never feeds back into a schedule
that computes its next rate from its last one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
import transformers

from trainer.optimization.lr_scheduler_config import LRSchedulerConfig, is_trainer_schedule, torch_schedules

# The option that says where the decay ends, for names that have one: `min_lr` is given to it.
END_OPTION = {"polynomial": "lr_end", "cosine_with_min_lr": "min_lr", "cosine_warmup_with_min_lr": "min_lr"}
# Where torch's default is not what a reader of the configuration would expect.
PLATEAU_DEFAULTS = {"factor": 0.5, "patience": 5, "threshold": 1e-3}


class TrainerCurve:
    """A schedule of transformers with its own warm-up: the rate is a function of the step alone.

    Args:
        rate: The run's learning rate.
        warmup, horizon: In steps.
    """

    def __init__(self, plan: LRSchedulerConfig, base_lrs: Sequence[float], rate: float, warmup: int, horizon: int):
        self.base_lrs = base_lrs
        options = dict(plan.options)
        if plan.min_lr is not None and plan.name in END_OPTION:
            options.setdefault(END_OPTION[plan.name], plan.min_lr)
        made = transformers.get_scheduler(plan.name, stand_in_for(base_lrs, rate), warmup, horizon, options)
        self.factors = made.lr_lambdas

    def rates_at(self, taken: float) -> list[float]:
        return [base * factor(taken) for base, factor in zip(self.base_lrs, self.factors, strict=True)]

    def momenta(self, index: int) -> dict[str, Any]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any], scales: Sequence[float] | None = None) -> None:
        pass


class TorchLRCurve:
    """A class of torch, or a schedule of transformers without warm-up, over a stand-in for the optimizer.

    Without a metric its rates are a function of how often it has moved on: a resumed run moves it as often again
    (some 6 µs each), and needs no more state than that.

    Args:
        rate: The run's learning rate.
        units: How often it will move on in the whole run.
        optimizer: The real one, for its momenta.
    """

    STATE = ("best", "num_bad_epochs", "num_good_epochs", "cooldown_counter", "warmup_counter", "reset_start")

    def __init__(
        self,
        plan: LRSchedulerConfig,
        base_lrs: Sequence[float],
        rate: float,
        units: int,
        optimizer: torch.optim.Optimizer,
    ):
        self.stand_in = stand_in_for(base_lrs, rate, optimizer)
        self.metric, self.moves = plan.follows_metric, 0
        self.scheduler = _made(plan.name, plan.filled(max(1, units), rate), self.stand_in, max(1, units), rate)
        self.cycles_momentum = getattr(self.scheduler, "cycle_momentum", False)
        # A OneCycleLR raises past its end; its last step is its lowest.
        self.last_move = getattr(self.scheduler, "total_steps", math.inf) - 1
        # torch asks for the optimizer's step before the scheduler's; here there is nothing to train.
        self.stand_in.step()

    def rates_at(self, moves: int) -> list[float]:
        while not self.metric and self.moves < min(moves, self.last_move):
            self.scheduler.step()
            self.moves += 1
        return [float(group["lr"]) for group in self.stand_in.param_groups]

    def observe(self, value: float) -> None:
        # Not a number is worse than anything, in both modes; and a running average would never recover from one.
        value = value if math.isfinite(value) else math.nan
        averages = getattr(self.scheduler, "smooth", False)
        if averages and math.isnan(value):
            self.scheduler.smooth = False
        self.scheduler.step(value)
        if averages:
            self.scheduler.smooth = True

    def momenta(self, index: int) -> dict[str, Any]:
        """What a cycle sets besides the rate: `momentum`, or Adam's `betas`."""
        group = self.stand_in.param_groups[index]
        return {name: group[name] for name in ("momentum", "betas") if self.cycles_momentum and name in group}

    def state_dict(self) -> dict[str, Any]:
        if not self.metric:
            return {}
        state = {each: getattr(self.scheduler, each) for each in self.STATE if hasattr(self.scheduler, each)}
        if math.isinf(state["best"]):  # nothing seen yet; JSON has no infinity
            state["best"] = None
        average = getattr(self.scheduler, "_streaming_avg", None)
        rates = [float(group["lr"]) for group in self.stand_in.param_groups]
        return state | {"rates": rates, "average": average.state_dict() if average else None}

    def load_state_dict(self, state: dict[str, Any], scales: Sequence[float] | None = None) -> None:
        """Metric schedules only. `scales`: factor for each group's rate, whose base has changed."""
        for each in self.STATE:
            if state.get(each) is not None:
                setattr(self.scheduler, each, state[each])
        if state.get("average") is not None:
            self.scheduler._streaming_avg.load_state_dict(copy.deepcopy(state["average"]))
        scales = scales or [1.0] * len(state.get("rates", ()))
        for group, rate, scale in zip(self.stand_in.param_groups, state.get("rates", ()), scales, strict=False):
            group["lr"] = rate * scale


# ---- making torch's objects ----


def stand_in_for(
    base_lrs: Sequence[float], rate: float, optimizer: torch.optim.Optimizer | None = None
) -> torch.optim.Optimizer:
    """An optimizer of nothing, with groups at the base rates and the momenta of the real one."""
    groups = [{"params": [torch.zeros(())], "lr": base} for base in base_lrs]
    made = torch.optim.SGD(groups, lr=rate, momentum=0.9)
    made.base_lrs = list(base_lrs)  # schedules inside others change what the groups call their initial rate
    if optimizer is not None:
        made.defaults.pop("momentum")
        for key in ("momentum", "betas"):
            if key in optimizer.defaults:
                made.defaults[key] = optimizer.defaults[key]
            for group, real in zip(made.param_groups, optimizer.param_groups, strict=True):
                if key in real:
                    group[key] = real[key]
    return made


def _made(name: str, options: dict[str, Any], stand_in: torch.optim.Optimizer, units: int, rate: float) -> Any:
    """The scheduler over the stand-in, with what the options leave out; `units`: how often it will move on."""
    if is_trainer_schedule(name):
        return transformers.get_scheduler(name, stand_in, scheduler_specific_kwargs=dict(options))
    kind = torch_schedules()[name]
    options = dict(options)
    if name == "ReduceLROnPlateau":
        options = PLATEAU_DEFAULTS | options
    elif name == "CosineAnnealingLR":
        options.setdefault("T_max", units)
    elif name == "PolynomialLR":
        options.setdefault("total_iters", units)
    elif name == "OneCycleLR" and not {"total_steps", "epochs"} & set(options):
        options["total_steps"] = units + 1  # its first step is number 0, and the run moves on `units` times
    elif name == "SequentialLR":
        ends = [*options["milestones"], max(units, options["milestones"][-1] + 1) if options["milestones"] else units]
        starts = [0, *options["milestones"]]
        options["schedulers"] = [
            _inner(each, stand_in, max(1, end - start), rate)
            for each, start, end in zip(options["schedulers"], starts, ends, strict=True)
        ]
    elif name == "ChainedScheduler":
        options["schedulers"] = [_inner(option, stand_in, units, rate) for option in options["schedulers"]]
    if name in ("OneCycleLR", "CyclicLR"):
        _scale_to_groups(options, stand_in, rate)
    return kind(optimizer=stand_in, **options)


def _inner(entry: dict[str, Any], stand_in: torch.optim.Optimizer, units: int, rate: float) -> Any:
    return _made(entry["name"], {each: v for each, v in entry.items() if each != "name"}, stand_in, units, rate)


def _scale_to_groups(options: dict[str, Any], stand_in: torch.optim.Optimizer, rate: float) -> None:
    """Bounds that these classes take as absolute rates: for every group in proportion to its base rate."""
    options.setdefault("max_lr", rate)
    for key in ("max_lr", "base_lr"):
        if isinstance(options.get(key), (int, float)):
            options[key] = [options[key] * (base / rate) for base in stand_in.base_lrs]
