"""The learning-rate schedule of a run: transformers' by name, torch's by class, with a warm-up before any of them.

`step` below is one optimizer update. A schedule's own unit is the step or the epoch (`interval`), and it advances
after every `frequency` of them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trainer.optimization.lr_curves import (
    LRSchedulerConfig,
    load_metric_state,
    metric_state,
    observe_metric,
    scheduler_with_warmup,
    scheduler_without_warmup,
    stand_in_for,
)

# These decay to `min_lr` where it is set; all others merely never go below it.
DECAYS_TO_ZERO = ("linear", "cosine", "cosine_with_restarts", "warmup_stable_decay")
SAME_AS_MIN_LR = ("lr_end", "min_lr", "min_lr_rate", "min_lr_ratio")  # options
ENDLESS = 10**7  # steps; a run without an end has more
ZERO = 1e-9  # of the base rate: what is left of a rate that has fallen to 0, by rounding
MAX_COMPARED = 10**5  # steps that are compared at most: some schedules have to be walked through
BUILD_ERRORS = (TypeError, ValueError, KeyError, ZeroDivisionError, AttributeError, OverflowError)


class LengthError(ValueError):
    """The schedule does not allow the run to resume with another number of steps."""


@dataclass(frozen=True)
class StepMapping:
    """Maps a step of the run to a step of its schedule; they differ once the length of the run has changed.

    From the run's step `start`, at which the schedule was at `position`, the schedule advances evenly to its end at
    `length`, which it reaches at the run's step `total`.
    """

    length: int
    "Number of steps that the schedule was built for."
    total: int
    start: int = 0
    position: float = 0
    frozen_after_end: bool = False

    def at(self, step: int) -> float:
        """The schedule's step, perhaps a fraction, at a step of the run."""
        if self.frozen_after_end and step >= self.total:
            return self.length
        if self.length == self.total and self.start == self.position:
            return step
        return self.position + (self.length - self.position) * (step - self.start) / (self.total - self.start)


class Schedule:
    """Writes the learning rates into the optimizer's groups; the Trainer steps it once per optimizer update.

    Args:
        optimizer: Each group's base rate is its `initial_lr`, or its `lr` if nobody has set that.
        plan: See `LRSchedulerConfig`.
        total_steps: Optimizer updates of the whole run.
        steps_per_epoch: Optimizer updates of one epoch.

    Raises:
        ValueError: the schedule cannot be built; the text names it.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, plan: LRSchedulerConfig, total_steps: int, steps_per_epoch: int
    ):
        self.optimizer, self.plan = optimizer, plan
        self.has_own_warmup, self.follows_metric = plan.has_own_warmup, plan.follows_metric
        self.total_steps, self.steps_per_epoch = total_steps, max(1, steps_per_epoch)
        self.steps_before = 0  # added to the run's steps where epochs are counted: batches may have been larger once
        self._use_mapping(StepMapping(total_steps, total_steps))
        if plan.decay_steps and self.warmup >= plan.decay_steps:
            raise ValueError(
                f"schedule `{plan.name}` ends after {plan.decay_steps} steps, before its {self.warmup} of warm-up"
            )
        self.step_count = self.metrics_seen = 0
        self.planned_lrs = [
            float(group.setdefault("initial_lr", float(group["lr"]))) for group in optimizer.param_groups
        ]
        self._start(self.planned_lrs)
        self._check_floor()
        self._apply()

    def step(self) -> None:
        """Advance by one optimizer update."""
        self.step_count += 1
        self._apply()

    def observe(self, value: float) -> None:
        """Pass a value of the metric that a plateau follows. None counts during the warm-up; of the later ones, every
        `frequency`-th does. One that is not finite counts as no improvement."""
        assert self.follows_metric, "only a plateau follows a metric"
        position = self.mapping.at(self.step_count)
        has_ended = self.plan.decay_steps and position >= self.plan.decay_steps
        if position < self.warmup or has_ended:
            return
        self.metrics_seen += 1
        if self.metrics_seen % self.plan.frequency == 0:
            observe_metric(self.scheduler, float(value))
            self._apply()

    def get_last_lr(self) -> list[float]:
        """The rate of each group for the next update."""
        return list(self.last_rates)

    def rate_at(self, step: int) -> float:
        """Advance to a later step without training; returns the learning rate of the first group there."""
        self.step_count = step
        self._apply()
        return self.last_rates[0]

    def rebase(self, base_lrs: list[float]) -> None:
        """Set new base rates, as if the schedule had had them from its first step; a plateau keeps its reductions."""
        scales = [new / old if old else 1.0 for new, old in zip(base_lrs, self.base_lrs, strict=True)]
        state = self._curve_state()
        self._start(base_lrs)
        self._check_floor()
        if self.follows_metric:
            load_metric_state(self.scheduler, self.stand_in, state, scales)
        self._write_base_lrs()

    # ---- state ----

    def state_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists and dicts only."""
        return {
            "name": self.plan.name,
            "step_count": self.step_count,
            "total_steps": self.total_steps,
            "course": dataclasses.asdict(self.mapping),
            "metrics_seen": self.metrics_seen,
            "base_lrs": list(self.base_lrs),
            "last_rates": list(self.last_rates),
            "curve": self._curve_state(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where another schedule was.

        Raises:
            ValueError: it is another schedule, or its run had another length, and the plan does not say what to do
                then; or no learning rate would be left.
        """
        is_same = state_dict.get("name") == self.plan.name
        if not is_same and not self.plan.takes_over:
            saved = state_dict.get("name", "another trainer's schedule")
            raise ValueError(
                f"the checkpoint's schedule is `{saved}`, this run's is `{self.plan.name}`; resume with it"
            )
        self.step_count = state_dict["step_count"]
        if is_same:
            self.metrics_seen = state_dict["metrics_seen"]
            self._use_mapping(self._resumed_mapping(state_dict))
        self._start(list(state_dict["base_lrs"]))
        if is_same and self.follows_metric:
            load_metric_state(self.scheduler, self.stand_in, state_dict["curve"], [1.0] * len(self.base_lrs))
        self._write_base_lrs()

    def _curve_state(self) -> dict[str, Any]:
        """State beside the step count. Schedules without a metric have none: a resumed run advances them as often
        again, some 6 µs each."""
        return metric_state(self.scheduler, self.stand_in) if self.follows_metric else {}

    def _resumed_mapping(self, state: dict[str, Any]) -> StepMapping:
        """The step mapping of a resumed schedule: as it was, or changed as the plan says if the length has changed."""
        mapping = StepMapping(**state["course"])
        choice, before, now = self.plan.new_length, state["total_steps"], self.total_steps
        if before == now:
            return mapping
        if choice is None and not depends_on_length(self.plan, before, now, self.steps_per_epoch):
            return mapping
        possible = self._possible_choices(mapping, state)
        if choice not in possible:
            raise LengthError(self._length_remedy(choice, possible, mapping, before))
        if choice == "keep":
            return dataclasses.replace(mapping, frozen_after_end=True)
        if now <= self.step_count:
            return mapping
        return StepMapping(mapping.length, now, self.step_count, mapping.at(self.step_count))

    def _possible_choices(self, mapping: StepMapping, state: dict[str, Any]) -> dict[str, str]:
        """What can be done about another length: `resume_schedule` -> what it means."""
        possible = {}
        ends = zip(self._rates_at_end(mapping, state), state["base_lrs"], strict=True)
        if self.total_steps <= mapping.total or any(rate > ZERO * base for rate, base in ends):
            possible["keep"] = f"it ends at step {mapping.total} as planned, then the rate stays"
        if self.step_count < mapping.total:
            possible["rebase"] = (
                f"what is left of it after step {self.step_count} is stretched over the remaining steps"
            )
        return possible

    def _length_remedy(self, choice: str | None, possible: dict[str, str], mapping: StepMapping, before: int) -> str:
        """Why the learning rate of the new length is not known, and what can be done."""
        reasons = {
            None: f"was planned to end at step {mapping.total}",
            "keep": f"ends at a learning rate of 0 at step {mapping.total}, and cannot be kept beyond",
            "rebase": f"ended at step {mapping.total}: nothing is left of it to rebase",
        }
        if not possible:
            reason = f"ended at step {mapping.total}, at a learning rate of 0"
            remedy = "start a new run from its weights (model_name_or_path, is_pretrained: true)"
        else:
            reason = reasons[choice]
            remedy = "choose with --resume_schedule: " + " or ".join(
                f"{name} ({text})" for name, text in possible.items()
            )
        lengths = f"the run was of {before} steps and is of {self.total_steps}"
        return f"{lengths}, and schedule `{self.plan.name}` {reason}; {remedy}"

    def _rates_at_end(self, mapping: StepMapping, state: dict[str, Any]) -> list[float]:
        if self.follows_metric:
            return list(state["last_rates"])
        trial = Schedule(stand_in_for(state["base_lrs"], 1.0), self.plan, mapping.length, self.steps_per_epoch)
        trial.rate_at(mapping.length)
        return trial.last_rates

    # ---- rates ----

    def _use_mapping(self, mapping: StepMapping) -> None:
        self.mapping = mapping
        self.warmup = self.plan.warmup_length(mapping.length, self.steps_per_epoch)
        self.horizon = self.plan.decay_steps or mapping.length

    def _start(self, base_lrs: list[float]) -> None:
        """Build the scheduler object at its first step."""
        self.base_lrs, plan = base_lrs, self.plan
        # A rebase changes the run's learning rate and the groups that follow it alike; a group with its own rate stays.
        ratios = [new / old for new, old in zip(base_lrs, self.planned_lrs, strict=True) if old]
        self.rate = rate = plan.learning_rate * next((ratio for ratio in ratios if ratio != 1), 1.0)
        floor = plan.min_lr or 0.0
        self.floors = [floor * (base / rate) if rate else 0.0 for base in base_lrs]
        self.stand_in = stand_in_for(base_lrs, rate, self.optimizer)
        try:
            if self.has_own_warmup:
                self.scheduler = scheduler_with_warmup(plan, self.stand_in, self.warmup, self.horizon)
            else:
                moves = max(1, self._moves(self.horizon))
                self.scheduler = scheduler_without_warmup(plan, self.stand_in, moves, rate)
        except BUILD_ERRORS as error:
            raise _build_error(plan, error) from error
        self.cycles_momentum = getattr(self.scheduler, "cycle_momentum", False)
        self.moves_done = 0
        # A OneCycleLR raises past its end; its last step is its lowest.
        self.last_move = getattr(self.scheduler, "total_steps", math.inf) - 1

    def _check_floor(self) -> None:
        if (self.plan.min_lr or 0.0) > self.rate:
            raise ValueError(f"min_lr {self.plan.min_lr:g} is above the learning rate, {self.rate:g}; lower it")

    def _moves(self, position: float) -> int:
        """How often a schedule without a warm-up of its own has advanced at a step of the schedule."""
        position = math.floor(position + 1e-9)  # a fraction's last digit is rounding
        if self.plan.interval == "epoch":
            every = self.steps_per_epoch * self.plan.frequency
            return max(0, (position + self.steps_before) // every - self.warmup // every)
        return max(0, position - self.warmup) // self.plan.frequency

    def _rates(self) -> list[float]:
        position = self.mapping.at(self.step_count)
        if self.plan.decay_steps:
            position = min(position, self.plan.decay_steps)
        if position < self.warmup and not self.has_own_warmup:
            return [base * (float(position) / float(max(1, self.warmup))) for base in self.base_lrs]
        if not self.has_own_warmup:
            moves = 0 if self.follows_metric else min(self._moves(position), self.last_move)
            while self.moves_done < moves:
                self.scheduler.step()
                self.moves_done += 1
            rates = [float(group["lr"]) for group in self.stand_in.param_groups]
            return [max(rate, floor) for rate, floor in zip(rates, self.floors, strict=True)]
        factors = [function(position) for function in self.scheduler.lr_lambdas]
        rates = [base * factor for base, factor in zip(self.base_lrs, factors, strict=True)]
        if position < self.warmup:
            return rates
        groups = zip(rates, self.floors, self.base_lrs, strict=True)
        if self.plan.name in DECAYS_TO_ZERO and self.plan.min_lr:
            return [floor + (base - floor) * (rate / base if base else 0.0) for rate, floor, base in groups]
        return [max(rate, floor) for rate, floor, _ in groups]

    def _apply(self) -> None:
        """Write rates, and what a cycle sets besides (`momentum`, or Adam's `betas`), into the optimizer's groups."""
        try:
            self.last_rates = self._rates()
        except BUILD_ERRORS as error:
            raise _build_error(self.plan, error) from error
        for group, rate, stand_in in zip(
            self.optimizer.param_groups, self.last_rates, self.stand_in.param_groups, strict=True
        ):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
            if self.cycles_momentum:
                group.update({key: stand_in[key] for key in ("momentum", "betas") if key in stand_in})

    def _write_base_lrs(self) -> None:
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["initial_lr"] = base
        self._apply()


# ---- before training ----


def planned_rates(
    plan: LRSchedulerConfig, total_steps: int, steps_per_epoch: int, base_lrs: Sequence[float] | None = None
) -> list[list[float]]:
    """The rates that will be applied, `[step][group]`, without training; a plateau's without reductions.

    Args:
        base_lrs: Base rate of each group. None: one group with the plan's learning rate.
    """
    stand_in = stand_in_for(list(base_lrs or [plan.learning_rate]), plan.learning_rate)
    schedule, rates = Schedule(stand_in, plan, total_steps, steps_per_epoch), []
    for _ in range(total_steps):
        rates.append(schedule.get_last_lr())
        schedule.step()
    return rates


def schedule_lines(schedule: Schedule) -> list[str]:
    """Two lines: what the schedule is; and its rate at the start, after warm-up, at the quarters and the end.

    The rates of one whose length has changed are those from that step on.
    """
    plan, total_steps, start = schedule.plan, schedule.total_steps, schedule.mapping.start
    stand_in = stand_in_for([plan.learning_rate], plan.learning_rate)
    trial = Schedule(stand_in, plan, total_steps, schedule.steps_per_epoch)
    trial.load_state_dict(schedule.state_dict() | {"base_lrs": [schedule.rate]})
    steps = {start, plan.decay_steps or start, start or trial.warmup}
    if total_steps < ENDLESS:  # else there are no quarters, and walking to them would take hours
        steps |= {start + quarter * (total_steps - start) // 4 for quarter in (1, 2, 3)} | {total_steps - 1}
    points = [f"{trial.rate_at(step):.3g} at {step}" for step in sorted(steps) if step < total_steps]
    unit = plan.interval or "step"
    every = f"every {unit}" if plan.frequency == 1 else f"every {plan.frequency} {unit}s"
    pace = f"following {plan.needs_metric}" if schedule.follows_metric else every
    warm = f", {trial.warmup} steps of warm-up" if trial.warmup else ""
    return [f"learning rate schedule {plan.name}, {pace}{warm}", "  " + ", ".join(points)]


def depends_on_length(plan: LRSchedulerConfig, before: int, now: int, steps_per_epoch: int) -> bool:
    """Whether the rates of a run of `before` steps are others than those of the same steps in one of `now` steps."""
    if plan.follows_metric:
        return plan.warmup_length(before, steps_per_epoch) != plan.warmup_length(now, steps_per_epoch)
    common = min(before, now, MAX_COMPARED)
    steps = sorted({common * part // 50 for part in range(50)} | {common - 1})

    def rates(total: int) -> list[float]:
        schedule = Schedule(stand_in_for([plan.learning_rate], plan.learning_rate), plan, total, steps_per_epoch)
        return [schedule.rate_at(step) for step in steps]

    return not all(math.isclose(*pair, rel_tol=1e-9) for pair in zip(rates(before), rates(now), strict=True))


def check_plan(plan: LRSchedulerConfig) -> None:
    """Take a few steps of a schedule, without its warm-up.

    Raises:
        ValueError: its scheduler cannot be built or stepped with these options, or `min_lr` is given twice.
    """
    same = [option for option in SAME_AS_MIN_LR if option in plan.options]
    if plan.min_lr is not None and plan.has_own_warmup and same:
        raise ValueError(f"schedule `{plan.name}` ends at `min_lr` and at its option `{same[0]}`; keep one")
    planned_rates(dataclasses.replace(plan, warmup_steps=0, warmup_epochs=0, decay_steps=None), 4, 2)


def _build_error(plan: LRSchedulerConfig, error: Exception) -> ValueError:
    text = " ".join(str(error).split())
    remedy = "; set cycle_momentum: false" if "momentum" in text else ""
    return ValueError(f"schedule `{plan.name}` cannot be built: {text}{remedy}")
