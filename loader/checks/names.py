"""Check what keys name, without importing it: optimizers, schedules, options, loggers, callbacks, files, metrics."""

from __future__ import annotations

import ast
import importlib.util
import math
import os
import typing
from collections.abc import Iterable, Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

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
from storage.suggestions import did_you_mean, nearest

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


# ---- files, and monitors ----

FILES = ("deepspeed", "fsdp_config", "accelerator_config")  # each a file, or its content
TYPO = 0.85  # similarity from which a name is taken for a misspelt one


def check_named_things(run: RunConfig, problems: Problems) -> None:
    """Add a problem for each file that does not exist, and each monitor that misspells a metric of the data."""
    for key in FILES:
        value = run.trainer.get(key)
        if (
            isinstance(value, str)
            and value.strip()[:1] not in ("", "{")
            and not os.path.isfile(os.path.expanduser(value))
        ):
            problems.add(f"`{key}: {value}`{run.place(key)} does not exist; name a file, or write its content here")
    _monitors(run, problems)


def _monitors(run: RunConfig, problems: Problems) -> None:
    """Names that no shipped metric has are left to the start, which knows loss terms and the sets' names."""
    if run.callbacks or run.dataset is None or not hasattr(run.dataset.module, "metric_names"):
        return  # callbacks may log metrics of their own
    monitored = list(_monitored(run))
    known = {"loss", *run.dataset.module.metric_names()} if monitored else set()
    for key, monitor in monitored:
        word = monitor.replace("/", "_").removeprefix("valid_").removeprefix("val_").removeprefix("eval_")
        near = nearest(word, known, TYPO)
        if word not in known and near is not None:
            problems.add(f"`{key}: {monitor}`{run.place(key)} is not logged; did you mean `eval_{near}`?")


def _monitored(run: RunConfig) -> Iterator[tuple[str, str]]:
    """The keys that name a metric, and the names."""
    if run.early_stopping is not None and run.early_stopping.strict:
        yield "early_stopping.monitor", run.early_stopping.monitor
    for name in run.checkpointing.monitors if run.checkpointing is not None else ():
        yield "checkpointing.monitor", name
    for key, name in (
        ("metric_for_best_model", run.trainer.get("metric_for_best_model")),
        ("scheduler.monitor", run.schedule.monitor),
    ):
        if name is not None:
            yield key, name


# ---- import paths, checked in the module's source ----


def import_problem(path: str) -> str | None:
    """What is wrong with the path of a class, or None; also where only an import could tell."""
    module, _, name = path.rpartition(".")
    package, *rest = module.split(".")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    found = package
    for part in rest if spec is not None else ():
        if spec.submodule_search_locations is None:
            return f"`{found}` is a module, not a package with `{part}` for `{path}`"
        found = f"{found}.{part}"
        spec = PathFinder.find_spec(found, spec.submodule_search_locations)
        if spec is None:
            break
    if spec is None:
        return f"no module `{found}` for `{path}`"
    names = _names(spec)
    return None if names is None or name in names else f"module `{module}` has no `{name}`{did_you_mean(name, names)}"


def _names(spec: ModuleSpec) -> set[str] | None:
    """The names that a module defines at its top level; None if its source does not show them all."""
    if spec.origin is None or not spec.origin.endswith(".py"):
        return None
    try:
        tree = ast.parse(Path(spec.origin).read_bytes())
    except (OSError, SyntaxError, ValueError):  # its import reports why
        return None
    names = set(_defined(tree.body))
    return None if names & {"*", "__getattr__"} else names


def _defined(statements: Iterable[ast.stmt]) -> Iterator[str]:
    for statement in statements:
        if isinstance(statement, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield statement.name
        elif isinstance(statement, (ast.Import, ast.ImportFrom)):
            yield from (alias.asname or alias.name.partition(".")[0] for alias in statement.names)
        elif isinstance(statement, (ast.Assign, ast.AnnAssign)):
            yield from (node.id for node in ast.walk(statement) if isinstance(node, ast.Name))
        else:  # blocks of `if`, `try`, `with`
            blocks = (getattr(statement, field, ()) for field in ("body", "orelse", "finalbody"))
            yield from (name for block in blocks for name in _defined(block))
            yield from (name for handler in getattr(statement, "handlers", ()) for name in _defined(handler.body))
