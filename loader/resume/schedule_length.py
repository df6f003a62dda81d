"""Resume with another length: whether and how the learning-rate schedule can follow."""

from __future__ import annotations

import math
from typing import Any

from loader.resolve.precedence import PLATEAUS
from loader.resolve.run_config import RunConfig

# Schedules that fall towards the run's end, and do not if an option says where they end instead.
TOWARDS_THE_END: dict[str, tuple[str, ...]] = {
    "linear": (),
    "cosine": (),
    "cosine_with_restarts": (),
    "polynomial": (),
    "cosine_with_min_lr": (),
    "cosine_warmup_with_min_lr": (),
    "warmup_stable_decay": (),
    "CosineAnnealingLR": ("T_max",),
    "PolynomialLR": ("total_iters",),
    "OneCycleLR": ("total_steps", "epochs"),
}
FIXED = (
    "constant", "constant_with_warmup", "inverse_sqrt", *PLATEAUS, "StepLR", "MultiStepLR", "ConstantLR", "LinearLR",
    "CosineAnnealingWarmRestarts", "CyclicLR",
)  # fmt: skip
# Schedules that end at nothing, with the option that would say otherwise.
TO_NOTHING = {
    "linear": None,
    "cosine": None,
    "cosine_with_restarts": None,
    "warmup_stable_decay": "min_lr_ratio",
    "CosineAnnealingLR": "eta_min",
    "PolynomialLR": None,
}
ENDLESS = 10**7  # steps; a run without an end has more


def check_length(run: RunConfig, outcome: Any, name: str, setting: str, after: float | None) -> tuple[list[str], str]:
    """Problems of another length, and the line that says what becomes of the schedule; "": the length is the same.

    Args:
        outcome: The `compatibility.ResumeChanges` so far.
        name: of the checkpoint.
        setting: The setting that says the new length, as error lines write it.
        after: Steps of the run as it is now; None: only its data could say.
    """
    facts = outcome.facts
    step, before = facts.step, facts.total
    if after is None or after == before:
        return [], ""
    was, now = (f"{each:,} steps" if each < ENDLESS else "no end" for each in (before, after))
    if after < step:
        return [f"{setting}: {name} has gone further than {now}; name an earlier checkpoint, or more steps"], ""
    statement, choice = f"{setting} makes {now} of {was}", run.hyper.resume_schedule
    if not depends_on_length(run) or outcome.schedule_changed:
        problems = _over(run, outcome, name, setting) if choice == "rebase" and not outcome.schedule_changed else []
        return problems, f"length: {statement}"
    ends = facts.course_end
    if choice is None:
        return [f"{statement}, {the_choice(run, outcome, f'the {max(0, after - step):,} steps from there on')}"], ""
    if choice == "rebase":
        problems = _over(run, outcome, name, setting)
        return problems, f"length: {statement}; what is left of the learning rate's course is spread over the rest"
    if after > ends and ends_at_nothing(run):
        return [
            f"`resume_schedule: keep`{run.place('resume_schedule')}: {run.hyper.lr_scheduler_type} ends at a learning "
            f"rate of 0 at step {ends:,}, and nothing would be learned in the {after - ends:,} steps after it; take "
            "rebase, or another lr_scheduler_type with --resume_changed allow"
        ], ""
    return [], f"length: {statement}; the learning rate keeps its course to step {ends:,}, then it stays"


def the_choice(run: RunConfig, outcome: Any, rest: str = "the steps from there on") -> str:
    """What can be said of a schedule that falls towards an end which is now elsewhere."""
    return (
        f"and {run.hyper.lr_scheduler_type} falls towards the end: say which with --resume_schedule: keep (its course "
        f"ends at step {outcome.facts.course_end:,} as planned, then the rate stays) or rebase (what is left of the "
        f"course after step {outcome.facts.step:,} is spread over {rest})"
    )


def _over(run: RunConfig, outcome: Any, name: str, setting: str) -> list[str]:
    """Nothing is left of a course to rebase, or no end to spread it to."""
    ends = outcome.facts.course_end
    if run.is_endless or ends >= ENDLESS:
        return [
            f"`resume_schedule: rebase`{run.place('resume_schedule')} with {setting}: a run without an end has none to "
            "spread the learning rate's course to; take keep, or give max_steps"
        ]
    if outcome.facts.step < ends:
        return []
    return [
        f"`resume_schedule: rebase`{run.place('resume_schedule')} with {setting}: the learning rate's course is over "
        f"at {name} (it ended at step {ends:,}), nothing is left of it to spread; name an earlier checkpoint, or "
        "another lr_scheduler_type with --resume_changed allow"
    ]


def total_steps(run: RunConfig, facts: Any) -> int | float | None:
    """Steps of the run as it is now; None: only its data could say."""
    if run.hyper.max_steps > 0:
        return run.hyper.max_steps
    if run.is_endless:
        return math.inf
    per_epoch = facts.steps_per_epoch
    return None if per_epoch is None else math.ceil(run.hyper.num_train_epochs * per_epoch)


def depends_on_length(run: RunConfig) -> bool:
    """Whether the learning rate of a step would be another in a longer run."""
    if run.optimizer.get("relative_step"):
        return False
    if run.hyper.warmup_ratio > 0 or 0 < run.hyper.warmup_steps < 1:
        return True  # a share of all steps
    if run.hyper.lr_decay_iters is not None:
        return False
    name = run.hyper.lr_scheduler_type
    options = {**(run.trainer.get("lr_scheduler_kwargs") or {}), **run.scheduler}
    return _falls_towards_end(name, options, run.hyper.min_lr is not None)


def _falls_towards_end(name: str, options: dict[str, Any], has_floor: bool = False) -> bool:
    if name == "ExponentialLR":
        return "gamma" not in options and has_floor
    if name in ("SequentialLR", "ChainedScheduler"):
        inner = [each for each in options.get("schedulers") or [] if isinstance(each, dict)]
        moving = inner[-1:] if name == "SequentialLR" else inner  # a sequence's others end where the next begins
        return any(_falls_towards_end(str(each.get("name")), each) for each in moving)
    if name in TOWARDS_THE_END:
        return not any(options.get(each) is not None for each in TOWARDS_THE_END[name])
    return name not in FIXED


def ends_at_nothing(run: RunConfig) -> bool:
    """Whether the rate at the end of the course is 0."""
    options = {**(run.trainer.get("lr_scheduler_kwargs") or {}), **run.scheduler}
    return not run.hyper.min_lr and _ends_at_nothing(run.hyper.lr_scheduler_type, options)


def _ends_at_nothing(name: str, options: dict[str, Any]) -> bool:
    inner = [each for each in options.get("schedulers") or [] if isinstance(each, dict)]
    if inner:
        last = inner[-1:] if name == "SequentialLR" else inner
        return any(_ends_at_nothing(str(each.get("name")), each) for each in last)
    if name not in TO_NOTHING or options.get("T_max") is not None:  # which may be anywhere in its waves by then
        return False
    return not (TO_NOTHING[name] and options.get(TO_NOTHING[name]))
