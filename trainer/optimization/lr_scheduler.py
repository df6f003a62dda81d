"""Learning rate schedules: transformers' by name, torch's by class, with a warm-up before any of them.

`step` below is one optimizer update. A schedule's own unit is the step or the epoch (`interval`), and it moves on after
every `frequency` of them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trainer.optimization.lr_curves import TorchLRCurve, TrainerCurve, stand_in_for
from trainer.optimization.lr_scheduler_config import LRSchedulerConfig, check_names, check_numbers

# These decay to `min_lr` where it is set; all others merely never go below it.
DECAYS_TO_ZERO = ("linear", "cosine", "cosine_with_restarts", "warmup_stable_decay")
ENDLESS = 10**7  # steps; a run without an end has more
NOTHING = 1e-9  # of the base rate: what is left of a rate that has fallen to 0, by rounding
LOOKED_AT = 10**5  # steps that are compared at most: some schedules have to be walked through


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
    held: bool = False
    "Past its end the schedule stands still."

    def at(self, step: int) -> float:
        """The schedule's step, a fraction perhaps, at a step of the run."""
        if self.held and step >= self.total:
            return self.length
        if self.length == self.total and self.start == self.position:
            return step
        return self.position + (self.length - self.position) * (step - self.start) / (self.total - self.start)


def stored_course(stored: Any, total: int) -> StepMapping:
    """The course that a checkpoint's schedule is on; one of an earlier version is on its own.

    Raises:
        ValueError: what is stored is none.
    """
    if stored is None:
        return StepMapping(total, total)
    try:
        found = StepMapping(**stored)
        numbers = (found.length, found.total, found.start, found.position)
        if (
            all(isinstance(number, (int, float)) for number in numbers)
            and found.length > 0
            and found.total > found.start
        ):
            return found
    except TypeError:
        pass
    raise ValueError("the checkpoint's learning rate course is damaged; take another checkpoint")


class Schedule:
    """What the Trainer steps once per optimizer update; it writes the rates into the optimizer's groups.

    Args:
        optimizer: Each group's base rate is its `initial_lr`, or its `lr` where nobody has set that.
        plan: See `LRSchedulerConfig`.
        total_steps: Optimizer updates of the whole run.
        steps_per_epoch: Optimizer updates of one epoch.

    Raises:
        ValueError: the plan cannot be carried out; the text names the schedule.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, plan: LRSchedulerConfig, total_steps: int, steps_per_epoch: int
    ):
        check_names(plan)
        self.optimizer, self.plan = optimizer, plan
        self.total_steps, self.steps_per_epoch = total_steps, max(1, steps_per_epoch)
        self.steps_before = 0  # added to the run's steps where epochs are counted: batches may have been larger once
        self._lay_out(StepMapping(total_steps, total_steps))
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
        """Advance to a later step without training; returns the learning rate of the first group there."""
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
        """Continue where another schedule was.

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

    def _lay_out(self, course: StepMapping) -> None:
        self.course = course
        self.warmup = self.plan.warmup_length(course.length, self.steps_per_epoch)
        self.horizon = self.plan.decay_steps or course.length

    def _course_after(self, state: dict[str, Any]) -> StepMapping:
        """The step mapping of a resumed schedule: as it was, or changed as the plan says if the length has changed."""
        before = state.get("total_steps", self.total_steps)
        course = stored_course(state.get("course"), before)
        choice, now = self.plan.new_length, self.total_steps
        if before == now:
            return course
        lengths = f"the run was of {before} steps and is of {now}"
        if choice is None:
            if depends_on_length(self.plan, before, now, self.steps_per_epoch):
                raise LengthError(
                    f"{lengths}, and schedule `{self.plan.name}` falls towards the end; choose with "
                    f"--resume_schedule: keep (it ends at step {course.total} as planned, then the rate stays) or "
                    f"rebase (what is left of it after step {self.taken} is stretched over the remaining steps)"
                )
            return course
        if choice == "rebase":
            if self.taken >= course.total:
                raise LengthError(
                    f"{lengths}, and nothing is left of schedule `{self.plan.name}` to rebase: it ended at step "
                    f"{course.total}"
                )
            return StepMapping(course.length, now, self.taken, course.at(self.taken)) if now > self.taken else course
        ends = zip(self._rates_at_end(course, state), state["base_lrs"], strict=True)
        if now > course.total and all(rate <= NOTHING * base for rate, base in ends):
            raise LengthError(
                f"{lengths}, and schedule `{self.plan.name}`, if it is kept, ends at a learning rate of 0 at step "
                f"{course.total}; rebase it"
            )
        return dataclasses.replace(course, held=True)

    def _rates_at_end(self, course: StepMapping, state: dict[str, Any]) -> list[float]:
        if self.plan.follows_metric:
            return list(state["last_rates"])
        trial = Schedule(stand_in_for(state["base_lrs"], 1.0), self.plan, course.length, self.steps_per_epoch)
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
                self.curve = TorchLRCurve(self.plan, base_lrs, rate, self._moves(self.horizon), self.optimizer)
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


# ---- before training ----


def planned_rates(
    plan: LRSchedulerConfig, total_steps: int, steps_per_epoch: int, base_lrs: Sequence[float] | None = None
) -> list[list[float]]:
    """The rates that will be applied, `[step][group]`, without training; a plateau's without reductions.

    Args:
        base_lrs: Base rate of each group. None: one group with the plan's learning rate.
    """
    schedule = Schedule(
        stand_in_for(list(base_lrs or [plan.learning_rate]), plan.learning_rate), plan, total_steps, steps_per_epoch
    )
    rates = []
    for _ in range(total_steps):
        rates.append(schedule.get_last_lr())
        schedule.step()
    return rates


def schedule_lines(real: Schedule) -> list[str]:
    """The schedule in two lines: what it is; and its rate at the start, after warm-up, at the quarters and the end.

    Of one that is under way, whose length has been changed, from where that was.
    """
    plan, total_steps, course = real.plan, real.total_steps, real.course
    schedule = Schedule(stand_in_for([plan.learning_rate], plan.learning_rate), plan, total_steps, real.steps_per_epoch)
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


def depends_on_length(plan: LRSchedulerConfig, before: int, now: int, steps_per_epoch: int) -> bool:
    """Whether the rates of a run of `before` steps are others than those of the same steps in one of `now` steps."""
    if plan.follows_metric:
        return plan.warmup_length(before, steps_per_epoch) != plan.warmup_length(now, steps_per_epoch)
    common = min(before, now, LOOKED_AT)
    steps = sorted({common * part // 50 for part in range(50)} | {common - 1})

    def rates(total: int) -> list[float]:
        schedule = Schedule(stand_in_for([plan.learning_rate], plan.learning_rate), plan, total, steps_per_epoch)
        return [schedule.rate_at(step) for step in steps]

    return not all(math.isclose(*pair, rel_tol=1e-9) for pair in zip(rates(before), rates(now), strict=True))


def check_plan(plan: LRSchedulerConfig) -> None:
    """Tries the plan out.

    Raises:
        ValueError: unknown names, options the constructor does not take or lacks, milestones that do not fit, a
            warm-up or a floor that contradicts the rest.
    """
    check_names(plan)
    check_numbers(plan)
    short = dataclasses.replace(plan, warmup_steps=0, warmup_epochs=0, decay_steps=None)
    planned_rates(short, 4, 2)


def _cannot(plan: LRSchedulerConfig, error: Exception) -> ValueError:
    text = " ".join(str(error).split())
    remedy = "; set cycle_momentum: false" if "momentum" in text else ""
    return ValueError(f"schedule `{plan.name}` cannot be built: {text}{remedy}")
