"""Check names that only the installed packages know: optimizers, schedules, their options, loggers, callbacks."""

from __future__ import annotations

import math
import typing

from loader.checks.import_paths import import_problem
from loader.errors import Problems, quoted
from loader.resolve.run_config import RunConfig
from loader.schema.installed import (
    backend_is_installed,
    constructor_options,
    pytorch_optimizers,
    reporting_backends,
    torch_optimizers,
    torch_schedulers,
    trainer_fields,
)
from storage.suggestions import did_you_mean

PLATEAUS = ("reduce_lr_on_plateau", "greedy")
# Options that torch's schedules require.
NEEDED = {
    "StepLR": ("step_size",),
    "MultiStepLR": ("milestones",),
    "ExponentialLR": ("gamma",),
    "CyclicLR": ("base_lr",),
}
# Names of TrainingArguments whose optimizers have no betas.
WITHOUT_BETAS = ("sgd", "adagrad", "rmsprop", "adafactor")
ADAM_KEYS = {"adam_beta1": "betas", "adam_beta2": "betas", "adam_epsilon": "eps"}


def check_names(run: RunConfig, problems: Problems) -> None:
    """Add a problem for each name that no installed package has, and each option that a constructor does not take."""
    _optimizer(run, problems)
    _schedule(run, problems)
    _backends(run, problems)
    _callbacks(run, problems)
    for section, options in (("optimizer", run.optimizer_options), ("scheduler", run.scheduler)):
        for option in _not_finite(options):
            place = run.place(f"{section}.{option}")
            problems.add(f"`{section}.{option}`{place} must be made of finite numbers")


def _optimizer(run: RunConfig, problems: Problems) -> None:
    name, words = run.hyper.optim, typing.get_args(trainer_fields()["optim"].annotation)
    classes = (*torch_optimizers(), *pytorch_optimizers())
    known = (*classes, *words, *(pytorch_optimizer.lower() for pytorch_optimizer in pytorch_optimizers()))
    if name not in known and torch_optimizers():
        hint = did_you_mean(name, known, "; torch.optim has " + ", ".join(torch_optimizers()))
        problems.add(
            f"`optim: {name}`{run.place('optim')} is neither a TrainingArguments name nor a class of torch.optim or "
            f"pytorch-optimizer{hint}"
        )
    for key in ADAM_KEYS if name in WITHOUT_BETAS else ():
        if run.on_command_line(key):
            problems.add(f"`{key}`{run.place(key)} has no effect: optimizer {name} is not of Adam's kind")
    if name in words:
        return
    takes = constructor_options(name)
    if takes is None:
        return
    for option in run.optimizer_options:
        if option not in takes:
            place = run.place(f"optimizer.{option}") or run.place("optim_args")
            hint = did_you_mean(option, takes, f"; it takes {', '.join(takes)}")
            problems.add(f"`optimizer.{option}`{place}: {name} takes no such option{hint}")
    for key, option in ADAM_KEYS.items():
        if run.on_command_line(key) and not {option, f"adamw_{option}"} & set(takes):
            problems.add(f"`{key}`{run.place(key)} has no effect: optimizer {name} has no `{option}`")


def _schedule(run: RunConfig, problems: Problems) -> None:
    name, words = run.hyper.lr_scheduler_type, typing.get_args(trainer_fields()["lr_scheduler_type"].annotation)
    known = (*words, *torch_schedulers())
    place = run.place("lr_scheduler_type")
    if name not in known:
        there_are = f"; there are {', '.join(words)}, and torch's {', '.join(torch_schedulers())}"
        problems.add(
            f"`lr_scheduler_type: {name}`{place} is neither a TrainingArguments name nor a class of "
            f"torch.optim.lr_scheduler{did_you_mean(name, known, there_are)}"
        )
    if name in words:
        unfit = ("interval",) if name in PLATEAUS else ("interval", "frequency", "monitor")
        for key in unfit:
            if run.was_set(f"scheduler.{key}") and getattr(run.schedule, key) not in (None, 1, "step"):
                problems.add(
                    f"`scheduler.{key}`{run.place(f'scheduler.{key}')} has no effect: {name} moves every step; a "
                    "class of torch.optim.lr_scheduler takes it"
                )
        return
    if run.schedule.monitor is not None and name != "ReduceLROnPlateau":
        problems.add(
            f"`scheduler.monitor`{run.place('scheduler.monitor')} has no effect: {name} follows no metric; "
            "ReduceLROnPlateau does"
        )
    takes = constructor_options(name)
    for option in run.scheduler if takes is not None else ():
        if option not in takes:
            hint = did_you_mean(option, takes, f"; it takes {', '.join(takes)}")
            problems.add(f"`scheduler.{option}`{run.place(f'scheduler.{option}')}: {name} takes no such option{hint}")
    for option in NEEDED.get(name, ()):
        if option not in run.scheduler and not (name == "ExponentialLR" and run.hyper.min_lr):
            problems.add(
                f"`lr_scheduler_type: {name}`{place} needs `{option}`: --set scheduler.{option}=…"
                + (", or --min_lr to fall to" if name == "ExponentialLR" else "")
            )


def _backends(run: RunConfig, problems: Problems) -> None:
    asked = run.hyper.report_to
    for name in [asked] if isinstance(asked, str) else asked or []:
        if name in ("none", "all"):
            continue
        if name not in reporting_backends():
            hint = did_you_mean(name, reporting_backends(), f"; there are {quoted(reporting_backends())}, none, all")
            problems.add(f"`report_to: {name}`{run.place('report_to')} is not a reporting backend{hint}")
        elif not backend_is_installed(name):
            problems.add(f"`report_to: {name}`{run.place('report_to')} is not installed; pip install {name}, or none")
    if run.logging and run.logging.logger_type == "WandbLogger" and not backend_is_installed("wandb"):
        place = run.place("logging.logger_type")
        problems.add(
            f"`logging.logger_type: WandbLogger`{place} needs wandb; pip install wandb, or take another logger"
        )


def _callbacks(run: RunConfig, problems: Problems) -> None:
    """Check that the classes exist; they are imported when the run starts, as that imports torch."""
    for entry in run.callbacks:
        name = entry if isinstance(entry, str) else entry["name"]
        if problem := import_problem(name):
            problems.add(f"`callbacks`{run.place('callbacks')}: {problem}")


def _not_finite(options: dict[str, object]) -> list[str]:
    """Return the options that contain an infinite number or NaN."""

    def bad(value: object) -> bool:
        if isinstance(value, (list, tuple)):
            return any(map(bad, value))
        if isinstance(value, dict):
            return any(map(bad, value.values()))
        return isinstance(value, float) and not math.isfinite(value)

    return [name for name, value in options.items() if bad(value)]
