"""What is known to be wrong before a GPU is touched: conflicts, paths, step arithmetic, keys nothing here can use."""

from __future__ import annotations

import os
import re
import typing
from pathlib import Path

from .component import component_module, shipped
from .errors import Problems, did_you_mean, quoted
from .hyper import HyperArguments
from .installed import backend_is_installed, reporting_backends, torch_optimizers
from .run_config import RunConfig
from .schema import COMPONENTS, SWITCHES, ProcessArguments, keys_of
from .trainer_fields import trainer_fields

# What marks a folder as the output of an earlier run.
RUN_FILES = ("run.yaml", "metrics.jsonl", "config.json", "model.safetensors", "adapter_config.json")
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
# Process keys that the trainer itself honours, whatever the model and data.
TRAINER_PROCESS_KEYS = frozenset({"cache_dir"})


def check_run(run: RunConfig) -> list[str]:
    """Every problem of a resolved run, one line each; an empty list means it may start."""
    problems = Problems()
    _length(run, problems)
    _strategies(run, problems)
    _names(run, problems)
    _process_keys(run, problems)
    _components(run, problems)
    _output_dir(run, problems)
    return problems.lines


def warmup(run: RunConfig) -> float:
    """Warm-up as TrainingArguments takes it: steps, or below 1 a share of all steps. The later of two settings wins."""
    steps, ratio = run.hyper.warmup_steps, run.hyper.warmup_ratio
    by_ratio = ratio > 0 and (steps == 0 or run.rank("warmup_ratio") > run.rank("warmup_steps"))
    # A ratio of 1 would read as «one step»; the largest number below it means all of them.
    return min(ratio, 1 - 2**-53) if by_ratio else steps


def max_steps(run: RunConfig) -> int:
    """Steps to train; -1 when the number of epochs decides. The later of two settings wins."""
    if run.hyper.max_steps > 0 and run.rank("num_train_epochs") > run.rank("max_steps"):
        return -1
    return run.hyper.max_steps


def evaluates(run: RunConfig) -> str:
    """The evaluation strategy: `eval_strategy` where YAML sets it, else every `eval_steps` when do_eval."""
    if run.rank("do_eval") > run.rank("eval_strategy") and not run.hyper.do_eval:
        return "no"
    if "eval_strategy" in run.trainer:
        return run.trainer["eval_strategy"]
    return "steps" if run.hyper.do_eval else "no"


def checkpoints(folder: Path) -> list[Path]:
    """The `checkpoint-N` folders in a run's folder, by step, oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.is_dir() and CHECKPOINT.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def resume_target(run: RunConfig) -> Path | None:
    """The checkpoint to resume from, or None for a fresh start. `auto` without a checkpoint starts fresh."""
    asked = run.hyper.resume_from_checkpoint
    if asked in (None, False) or str(asked).lower() in ("false", "no"):
        return None
    if asked is True or str(asked).lower() in ("auto", "true", "yes"):
        return next(reversed(checkpoints(run.output_dir)), None)
    return Path(os.path.expanduser(asked))


def wants_resume(run: RunConfig) -> bool:
    asked = run.hyper.resume_from_checkpoint
    return not (asked in (None, False) or str(asked).lower() in ("false", "no"))


def _length(run: RunConfig, problems: Problems) -> None:
    hyper = run.hyper
    if hyper.max_steps == 0:
        problems.add(
            f"`max_steps: 0`{run.place('max_steps')} would train nothing; give a positive number, or -1 for epochs"
        )
    for first, second in (("max_steps", "num_train_epochs"), ("warmup_steps", "warmup_ratio")):
        same_layer = run.was_set(first) and run.rank(first) == run.rank(second)
        stated = getattr(hyper, second) != keys_of(HyperArguments)[second].default  # a saved run.yaml states both
        if same_layer and stated and getattr(hyper, first) > 0:
            problems.add(
                f"`{first}`{run.place(first)} and `{second}`{run.place(second)} both set the same length; keep one"
            )
    steps, warm = max_steps(run), warmup(run)
    if steps > 0 and warm >= steps and warm >= 1:
        problems.add(
            f"`warmup_steps: {warm:g}`{run.place('warmup_steps')} is not shorter than the run of {steps} steps"
            f" (`max_steps`{run.place('max_steps')}); the learning rate would never be reached"
        )
    if 1 <= warm != int(warm):
        problems.add(f"`warmup_steps: {warm:g}`{run.place('warmup_steps')} must be a whole number, or a share below 1")
    for name in ("logging_steps", "save_steps", "eval_steps"):
        value = getattr(hyper, name)
        if value is not None and value > 1 and value != int(value):
            problems.add(f"`{name}: {value:g}`{run.place(name)} must be a whole number, or a share below 1")


def _strategies(run: RunConfig, problems: Problems) -> None:
    if run.trainer.get("fp16") and run.trainer.get("bf16"):
        problems.add(f"`fp16`{run.place('fp16')} and `bf16`{run.place('bf16')} are both true; keep one")
    needs_metric = run.trainer.get("load_best_model_at_end") or run.hyper.save_strategy == "best"
    if needs_metric and evaluates(run) == "no":
        key = "load_best_model_at_end" if run.trainer.get("load_best_model_at_end") else "save_strategy"
        problems.add(f"`{key}`{run.place(key)} needs evaluation to know what is best; set do_eval: true")
    if run.trainer.get("dataloader_prefetch_factor") and run.hyper.dataloader_num_workers == 0:
        problems.add(
            f"`dataloader_prefetch_factor`{run.place('dataloader_prefetch_factor')} needs worker processes; "
            "set dataloader_num_workers above 0"
        )
    if run.trainer.get("dataloader_persistent_workers") and run.hyper.dataloader_num_workers == 0:
        problems.add(
            f"`dataloader_persistent_workers`{run.place('dataloader_persistent_workers')} needs worker processes; "
            "set dataloader_num_workers above 0"
        )


def _names(run: RunConfig, problems: Problems) -> None:
    """Optimizers and reporting backends are words that only the installed packages know."""
    known = (*typing.get_args(trainer_fields()["optim"].annotation), *torch_optimizers())
    if run.hyper.optim not in known and torch_optimizers():
        folded = {name.lower(): name for name in known}
        near = folded.get(run.hyper.optim.lower())
        hint = f"; did you mean `{near}`?" if near else did_you_mean(run.hyper.optim, known)
        problems.add(
            f"`optim: {run.hyper.optim}`{run.place('optim')} is neither a TrainingArguments name nor a torch.optim "
            f"class{hint or '; torch.optim has ' + ', '.join(torch_optimizers())}"
        )
    asked = run.hyper.report_to
    for name in [asked] if isinstance(asked, str) else asked or []:
        if name in ("none", "all"):
            continue
        if name not in reporting_backends():
            hint = did_you_mean(name, reporting_backends()) or f"; there are {quoted(reporting_backends())}, none, all"
            problems.add(f"`report_to: {name}`{run.place('report_to')} is not a reporting backend{hint}")
        elif not backend_is_installed(name):
            problems.add(f"`report_to: {name}`{run.place('report_to')} is not installed; pip install {name}, or none")


def _process_keys(run: RunConfig, problems: Problems) -> None:
    """A process key that nothing in this run can use must be at its default: no setting is silently dead."""
    chosen = [part for part in (run.dataset, run.model, run.env) if part is not None]
    live = TRAINER_PROCESS_KEYS.union(*(getattr(part.module, "PROCESS_KEYS", ()) for part in chosen))
    for name, key in keys_of(ProcessArguments).items():
        value = getattr(run.process, name)
        if value == key.default:
            continue
        if name not in live:
            users = _users(name)
            able = f"; used by {users}" if users else " yet"
            problems.add(
                f"`{name}: {_shown(value)}`{run.place(name)} would do nothing: no model or data here uses `{name}`"
                f"{able}; set it to {_shown(key.default)}"
            )
            continue
        for switch, dependents in SWITCHES.items():
            if name in dependents and not getattr(run.process, switch):
                problems.add(f"`{name}: {_shown(value)}`{run.place(name)} would do nothing while `{switch}` is false")


def _users(name: str) -> str:
    """Shipped components that use a process key, for the error that says who could."""
    found = []
    for section in COMPONENTS:
        for component in shipped(section):
            if name in getattr(component_module(section, component), "PROCESS_KEYS", ()):
                found.append(f"{section} {component}")
    return quoted(found)


def _shown(value: object) -> str:
    return (
        {True: "true", False: "false", None: "null"}.get(value, str(value))
        if not isinstance(value, float)
        else f"{value:g}"
    )


def _components(run: RunConfig, problems: Problems) -> None:
    if run.dataset is None:
        problems.add(f"no data: the task `{run.hyper.task_name}` has no `dataset`; name another with --task_name")
    elif hasattr(run.dataset.module, "check") and not _recordable(run):
        problems.lines += run.dataset.module.check(run.dataset.config, run)
    for name in keys_of(type(run.model.config)) if run.model and run.dataset else ():
        stated, given = getattr(run.model.config, name), getattr(run.dataset.config, name, None)
        if None not in (stated, given) and stated != given:
            problems.add(
                f"`model.{name}: {stated}`{run.place(f'model.{name}')} contradicts `dataset.{name}: {given}`"
                f"{run.place(f'dataset.{name}')}; leave `model.{name}` out"
            )
    if run.model is None:
        problems.add(f"no model: name one with --model_config; there are {quoted(shipped('model'))}")


def _recordable(run: RunConfig) -> bool:
    """Whether the task's data is recorded on first use: it names an environment and no path of its own."""
    return run.env is not None and getattr(run.dataset.config, "path", None) is None


def _output_dir(run: RunConfig, problems: Problems) -> None:
    folder, place = run.output_dir, run.place("output_dir")
    if not run.hyper.output_dir.strip():
        problems.add(f"`output_dir`{place} is empty; name a folder")
        return
    if folder.exists() and not folder.is_dir():
        problems.add(f"`output_dir: {folder}`{place} is a file; name a folder")
        return
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        problems.add(f"`output_dir: {folder}`{place} cannot be made: {existing} is a file")
    elif not os.access(existing, os.W_OK | os.X_OK):
        problems.add(f"`output_dir: {folder}`{place} is not writable ({existing}); name a folder you may write to")
    elif wants_resume(run):
        _resume(run, problems)
    elif used := [path.name for path in (*map(folder.joinpath, RUN_FILES), *checkpoints(folder)) if path.exists()]:
        problems.add(
            f"`output_dir: {folder}`{place} already holds a run ({used[0]}); continue it with "
            "--resume_from_checkpoint auto, or name another --output_dir"
        )


def _resume(run: RunConfig, problems: Problems) -> None:
    target, place = resume_target(run), run.place("resume_from_checkpoint")
    if target is None:
        return
    if not target.is_dir():
        problems.add(f"`resume_from_checkpoint: {target}`{place} is not a checkpoint folder")
    elif not (target / "trainer_state.json").is_file():
        problems.add(
            f"`resume_from_checkpoint: {target}`{place} has no trainer_state.json; name a folder checkpoint-N of a run"
        )
