"""Learning rate schedules: transformers' by name, torch's by class, with a warm-up before any of them.

`step` below is one optimizer update. A schedule's own unit is the step or the epoch (`interval`), and it moves on after
every `frequency` of them. The rates come from a stand-in optimizer, so that a floor, a warm-up or a frozen end never
feeds back into a schedule that computes its next rate from its last one.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch.optim import lr_scheduler
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from transformers.trainer_utils import SchedulerType

from .course import Course, stored_course

# transformers' names without a warm-up of their own: one is put before them, as before torch's classes.
WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")
FOLLOWS_METRIC = ("reduce_lr_on_plateau", "greedy", "ReduceLROnPlateau")
# These decay to `min_lr` where it is set; all others merely never go below it.
DECAYS_TO_ZERO = ("linear", "cosine", "cosine_with_restarts", "warmup_stable_decay")
# The option that says where the decay ends, for names that have one: `min_lr` is given to it.
END_OPTION = {"polynomial": "lr_end", "cosine_with_min_lr": "min_lr", "cosine_warmup_with_min_lr": "min_lr"}
SAME_AS_MIN_LR = ("lr_end", "min_lr", "min_lr_rate", "min_lr_ratio")
UNFIT = {
    "LambdaLR": "takes a function, which YAML cannot write",
    "MultiplicativeLR": "takes a function, which YAML cannot write",
    "LRScheduler": "is only the base of the others",
}
FILLED = ("T_max", "max_lr")  # required by torch, known here
ENDLESS = 10**7  # steps; a run without an end has more
NOTHING = 1e-9  # of the base rate: what is left of a rate that has fallen to 0, by rounding
LOOKED_AT = 10**5  # steps that are compared at most: some schedules have to be walked through
TRAINING_LOSS = ("loss", "train_loss", "train/loss")
# Where torch's default is not what a reader of the configuration would expect.
PLATEAU_DEFAULTS = {"factor": 0.5, "patience": 5, "threshold": 1e-3}


@dataclass(frozen=True)
class SchedulePlan:
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
    "A resumed run may have had another schedule: this one goes on at its step."

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


class Schedule:
    """What the Trainer steps once per optimizer update; it writes the rates into the optimizer's groups.

    Args:
        optimizer: Each group's base rate is its `initial_lr`, or its `lr` where nobody has set that.
        plan: See `SchedulePlan`.
        total_steps: Optimizer updates of the whole run.
        steps_per_epoch: Optimizer updates of one epoch.

    Raises:
        ValueError: the plan cannot be carried out; the text names the schedule.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, plan: SchedulePlan, total_steps: int, steps_per_epoch: int):
        check_names(plan)
        self.optimizer, self.plan = optimizer, plan
        self.total_steps, self.steps_per_epoch = total_steps, max(1, steps_per_epoch)
        self.steps_before = 0  # added to the run's steps where epochs are counted: batches may have been larger once
        self._lay_out(Course(total_steps, total_steps))
        if plan.decay_steps and self.warmup >= plan.decay_steps:
            raise ValueError(
                f"schedule `{plan.name}` ends after {plan.decay_steps} steps, before its {self.warmup} of warm-up"
            )
        self.taken = 0
        self.metrics_seen = 0
        self.planned_lrs = [
            float(group.setdefault("initial_lr", float(group["lr"]))) for group in optimizer.param_groups
        ]
        self._start(self.planned_lrs)
        self._apply()

    def step(self) -> None:
        """One optimizer update has been made."""
        self.taken += 1
        self._apply()

    def observe(self, value: float) -> None:
        """A value of the metric that a plateau follows. None counts during the warm-up; of the later ones, every
        `frequency`-th does. One that is not finite counts as no improvement.

        Raises:
            ValueError: there is no value.
        """
        assert self.plan.follows_metric, "only a plateau follows a metric"
        if value is None:
            raise ValueError(f"schedule `{self.plan.name}` follows `{self.needs_metric}`, which was not reported")
        position = self.course.at(self.taken)
        ended = self.plan.decay_steps and position >= self.plan.decay_steps
        if position < self.warmup or ended:
            return
        self.metrics_seen += 1
        if self.metrics_seen % self.plan.frequency == 0:
            self.curve.observe(float(value))
            self._apply()

    def get_last_lr(self) -> list[float]:
        """The rate of each group for the next update."""
        return list(self.last_rates)

    def rate_at(self, step: int) -> float:
        """Goes on to a later step, without training; the rate of the first group there."""
        self.taken = step
        self._apply()
        return self.last_rates[0]

    def rebase(self, base_lrs: list[float]) -> None:
        """New base rates for every group, as if the schedule had had them from its first step. A plateau keeps its
        reductions.
        """
        state = self.curve.state_dict()
        scales = [new / old if old else 1.0 for new, old in zip(base_lrs, self.base_lrs, strict=True)]
        self._start(base_lrs)
        if self.plan.follows_metric:
            self.curve.load_state_dict(state, scales)
        for group, base in zip(self.optimizer.param_groups, base_lrs, strict=True):
            group["initial_lr"] = base
        self._apply()

    def state_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists and dicts only."""
        return {
            "name": self.plan.name,
            "taken": self.taken,
            "total_steps": self.total_steps,
            "course": dataclasses.asdict(self.course),
            "metrics_seen": self.metrics_seen,
            "base_lrs": list(self.base_lrs),
            "last_rates": list(self.last_rates),
            "curve": self.curve.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where another schedule stood.

        Raises:
            ValueError: it is another schedule, or its run had another length, and the plan says of neither what to do;
                or what it says would leave nothing to learn with.
        """
        is_same = state_dict.get("name") == self.plan.name
        if not is_same and not self.plan.takes_over:
            saved = state_dict.get("name", "another trainer's schedule")
            raise ValueError(
                f"the checkpoint's schedule is `{saved}`, this run's is `{self.plan.name}`; resume with it"
            )
        self.taken = state_dict["taken"]
        if is_same:
            self.metrics_seen = state_dict["metrics_seen"]
            self._lay_out(self._course_after(state_dict))
        self._start(list(state_dict["base_lrs"]))
        if is_same:
            self.curve.load_state_dict(state_dict["curve"])
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["initial_lr"] = base
        self._apply()

    def _lay_out(self, course: Course) -> None:
        self.course = course
        self.warmup = self.plan.warmup_length(course.length, self.steps_per_epoch)
        self.horizon = self.plan.decay_steps or course.length

    def _course_after(self, state: dict[str, Any]) -> Course:
        """The course of a schedule that goes on: as it was, or changed as the plan says where the length is another."""
        before = state.get("total_steps", self.total_steps)
        course = stored_course(state.get("course"), before)
        choice, now = self.plan.new_length, self.total_steps
        if before == now:
            return course
        lengths = f"the run was of {before} steps and is of {now}"
        if choice is None:
            if depends_on_length(self.plan, before, now, self.steps_per_epoch):
                raise ValueError(
                    f"{lengths}, and schedule `{self.plan.name}` falls towards the end; say with resume_schedule "
                    "whether to keep its course or to rebase what is left of it"
                )
            return course
        if choice == "rebase":
            if self.taken >= course.total:
                raise ValueError(
                    f"{lengths}, and nothing is left of schedule `{self.plan.name}` to rebase: it ended at step "
                    f"{course.total}"
                )
            return Course(course.length, now, self.taken, course.at(self.taken)) if now > self.taken else course
        ends = zip(self._rates_at_end(course, state), state["base_lrs"], strict=True)
        if now > course.total and all(rate <= NOTHING * base for rate, base in ends):
            raise ValueError(
                f"{lengths}, and schedule `{self.plan.name}`, if it is kept, ends at a learning rate of 0 at step "
                f"{course.total}; rebase it"
            )
        return dataclasses.replace(course, held=True)

    def _rates_at_end(self, course: Course, state: dict[str, Any]) -> list[float]:
        if self.plan.follows_metric:
            return list(state["last_rates"])
        trial = Schedule(_stand_in(state["base_lrs"], 1.0), self.plan, course.length, self.steps_per_epoch)
        trial.rate_at(course.length)
        return trial.last_rates

    @property
    def needs_metric(self) -> str | None:
        """The metric to `observe`; None where the schedule follows none."""
        return (self.plan.monitor or "eval_loss") if self.plan.follows_metric else None

    def _start(self, base_lrs: list[float]) -> None:
        self.base_lrs = base_lrs
        # A rebase changes the run's learning rate as it does its groups'; what is in proportion to it stays so.
        changed = [new / old for new, old in zip(base_lrs, self.planned_lrs, strict=True) if old]
        self.rate = rate = self.plan.learning_rate * (changed[0] if changed else 1.0)
        floor = self.plan.min_lr or 0.0
        if floor > rate:
            raise ValueError(f"min_lr {floor:g} is above the learning rate, {rate:g}; lower it")
        self.floors = [floor * (base / rate) if rate else 0.0 for base in base_lrs]
        try:
            if self.plan.warms_up_itself:
                self.curve = TrainerCurve(self.plan, base_lrs, rate, self.warmup, self.horizon)
            else:
                self.curve = TorchCurve(self.plan, base_lrs, rate, self._moves(self.horizon), self.optimizer)
        except (TypeError, ValueError, KeyError, ZeroDivisionError, AttributeError) as error:
            raise _cannot(self.plan, error) from error

    def _moves(self, taken: float) -> int:
        """How often a schedule without a warm-up of its own has moved on, that many steps into its course."""
        taken = math.floor(taken + 1e-9)  # a fraction's last digit is rounding
        if self.plan.interval == "epoch":
            every = self.steps_per_epoch * self.plan.frequency
            return max(0, (taken + self.steps_before) // every - self.warmup // every)
        return max(0, taken - self.warmup) // self.plan.frequency

    def _rates(self) -> list[float]:
        taken = self.course.at(self.taken)
        taken = min(taken, self.plan.decay_steps) if self.plan.decay_steps else taken
        if self.plan.warms_up_itself:
            rates = self.curve.rates_at(taken)
            if taken < self.warmup:
                return rates
            if self.plan.name in DECAYS_TO_ZERO and self.plan.min_lr:
                return [
                    floor + (base - floor) * (rate / base if base else 0.0)
                    for rate, floor, base in zip(rates, self.floors, self.base_lrs, strict=True)
                ]
        else:
            if taken < self.warmup:
                return [base * (float(taken) / float(max(1, self.warmup))) for base in self.base_lrs]
            rates = self.curve.rates_at(self._moves(taken))
        return [max(rate, floor) for rate, floor in zip(rates, self.floors, strict=True)]

    def _apply(self) -> None:
        try:
            self.last_rates = self._rates()
        except (TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
            raise _cannot(self.plan, error) from error
        for index, group in enumerate(self.optimizer.param_groups):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(self.last_rates[index])
            else:
                group["lr"] = self.last_rates[index]
            for key, value in self.curve.momenta(index).items():
                group[key] = value


class TrainerCurve:
    """A schedule of transformers with its own warm-up: the rate is a function of the step alone.

    Args:
        rate: The run's learning rate.
        warmup, horizon: In steps.
    """

    def __init__(self, plan: SchedulePlan, base_lrs: Sequence[float], rate: float, warmup: int, horizon: int):
        self.base_lrs = base_lrs
        options = dict(plan.options)
        if plan.min_lr is not None and plan.name in END_OPTION:
            options.setdefault(END_OPTION[plan.name], plan.min_lr)
        made = transformers.get_scheduler(plan.name, _stand_in(base_lrs, rate), warmup, horizon, options)
        self.factors = made.lr_lambdas

    def rates_at(self, taken: float) -> list[float]:
        return [base * factor(taken) for base, factor in zip(self.base_lrs, self.factors, strict=True)]

    def momenta(self, index: int) -> dict[str, Any]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any], scales: Sequence[float] | None = None) -> None:
        pass


class TorchCurve:
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
        plan: SchedulePlan,
        base_lrs: Sequence[float],
        rate: float,
        units: int,
        optimizer: torch.optim.Optimizer,
    ):
        self.stand_in = _stand_in(base_lrs, rate, optimizer)
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
        return {each: group[each] for each in ("momentum", "betas") if self.cycles_momentum and each in group}

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


# ---- before training ----


def planned_rates(
    plan: SchedulePlan, total_steps: int, steps_per_epoch: int, base_lrs: Sequence[float] | None = None
) -> list[list[float]]:
    """The rates that will be applied, `[step][group]`, without training; a plateau's without reductions.

    Args:
        base_lrs: Base rate of each group. None: one group with the plan's learning rate.
    """
    schedule = Schedule(
        _stand_in(list(base_lrs or [plan.learning_rate]), plan.learning_rate), plan, total_steps, steps_per_epoch
    )
    rates = []
    for _ in range(total_steps):
        rates.append(schedule.get_last_lr())
        schedule.step()
    return rates


def plan_lines(plan: SchedulePlan, total_steps: int, steps_per_epoch: int) -> list[str]:
    """The schedule in two lines: what it is; and its rate at the start, after warm-up, at the quarters and the end."""
    return schedule_lines(
        Schedule(_stand_in([plan.learning_rate], plan.learning_rate), plan, total_steps, steps_per_epoch)
    )


def schedule_lines(real: Schedule) -> list[str]:
    """The same of a schedule that is under way, whose length may have been changed: from where that was."""
    plan, total_steps, course = real.plan, real.total_steps, real.course
    schedule = Schedule(_stand_in([plan.learning_rate], plan.learning_rate), plan, total_steps, real.steps_per_epoch)
    schedule.load_state_dict(real.state_dict() | {"base_lrs": [real.rate]})
    length = total_steps - course.start
    shown = {course.start, *({schedule.warmup} if course.start == 0 else ())}
    if total_steps < ENDLESS:  # else there are no quarters, and walking to them would take hours
        shown |= {
            course.start + length // 4,
            course.start + length // 2,
            course.start + 3 * length // 4,
            total_steps - 1,
        }
    if plan.decay_steps:
        shown.add(plan.decay_steps)
    steps = sorted(each for each in shown if 0 <= each < total_steps)
    points = [f"{schedule.rate_at(step):.3g} at {step}" for step in steps]
    unit = plan.interval or "step"
    every = f"every {unit}" if plan.frequency == 1 else f"every {plan.frequency} {unit}s"
    pace = f"following {schedule.needs_metric}" if plan.follows_metric else every
    warm = f", {schedule.warmup} steps of warm-up" if schedule.warmup else ""
    return [f"learning rate schedule {plan.name}, {pace}{warm}", "  " + ", ".join(points)]


def depends_on_length(plan: SchedulePlan, before: int, now: int, steps_per_epoch: int) -> bool:
    """Whether the rates of a run of `before` steps are others than those of the same steps in one of `now` steps."""
    if plan.follows_metric:
        return plan.warmup_length(before, steps_per_epoch) != plan.warmup_length(now, steps_per_epoch)
    common = min(before, now, LOOKED_AT)
    steps = sorted({common * part // 50 for part in range(50)} | {common - 1})

    def rates(total: int) -> list[float]:
        schedule = Schedule(_stand_in([plan.learning_rate], plan.learning_rate), plan, total, steps_per_epoch)
        return [schedule.rate_at(step) for step in steps]

    return not all(math.isclose(*pair, rel_tol=1e-9) for pair in zip(rates(before), rates(now), strict=True))


def check_plan(plan: SchedulePlan) -> None:
    """Tries the plan out.

    Raises:
        ValueError: unknown names, options the constructor does not take or lacks, milestones that do not fit, a
            warm-up or a floor that contradicts the rest.
    """
    check_names(plan)
    _check_numbers(plan)
    short = dataclasses.replace(plan, warmup_steps=0, warmup_epochs=0, decay_steps=None)
    planned_rates(short, 4, 2)


def check_names(plan: SchedulePlan) -> None:
    """The part of `check_plan` that concerns names of schedules and of their options."""
    _check_one(plan.name, plan.filled())
    if plan.interval not in (None, "step", "epoch"):
        raise ValueError(f"schedule `{plan.name}` has the interval `{plan.interval}`; it is step or epoch")
    if plan.monitor is not None and not plan.follows_metric:
        raise ValueError(f"schedule `{plan.name}` follows no metric, so `monitor: {plan.monitor}` would do nothing")
    by_step_only = is_trainer_schedule(plan.name) and not plan.follows_metric
    if by_step_only and (plan.interval == "epoch" or plan.frequency != 1):
        raise ValueError(
            f"schedule `{plan.name}` goes by single steps; a torch.optim.lr_scheduler class can go by epochs"
        )


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


def _check_one(name: str, options: dict[str, Any]) -> None:
    known = [each.value for each in SchedulerType] + [each for each in torch_schedules() if each not in UNFIT]
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
        if not all(isinstance(each, int) and each > 0 for each in stones) or stones != sorted(set(stones)):
            raise ValueError(f"schedule `{name}` needs rising whole numbers above 0 as milestones, not {stones}")


def _check_numbers(plan: SchedulePlan) -> None:
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


# ---- making torch's objects ----


def _stand_in(
    base_lrs: Sequence[float], rate: float, optimizer: torch.optim.Optimizer | None = None
) -> torch.optim.Optimizer:
    """An optimizer of nothing, with groups at the base rates and the momenta of the real one."""
    groups = [{"params": [torch.zeros(())], "lr": base} for base in base_lrs]
    made = torch.optim.SGD(groups, lr=rate, momentum=0.9)
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
        options["schedulers"] = [_inner(each, stand_in, units, rate) for each in options["schedulers"]]
    if name in ("OneCycleLR", "CyclicLR"):
        _scale_to_groups(options, stand_in, rate)
    return kind(optimizer=stand_in, **options)


def _inner(entry: dict[str, Any], stand_in: torch.optim.Optimizer, units: int, rate: float) -> Any:
    return _made(entry["name"], {each: v for each, v in entry.items() if each != "name"}, stand_in, units, rate)


def _scale_to_groups(options: dict[str, Any], stand_in: torch.optim.Optimizer, rate: float) -> None:
    """Bounds that these classes take as absolute rates: for every group in proportion to its base rate."""
    bases = [group.get("initial_lr", group["lr"]) for group in stand_in.param_groups]
    options.setdefault("max_lr", rate)
    for key in ("max_lr", "base_lr"):
        if isinstance(options.get(key), (int, float)):
            options[key] = [options[key] * (base / rate) for base in bases]


def _cannot(plan: SchedulePlan, error: Exception) -> ValueError:
    text = " ".join(str(error).split())
    remedy = "; set cycle_momentum: false" if "momentum" in text else ""
    return ValueError(f"schedule `{plan.name}` cannot be built: {text}{remedy}")
