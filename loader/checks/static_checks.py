"""Checks that need neither torch nor data: lengths, rates, paths, and keys that nothing in the run uses."""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loader.checks.launch import check_environment, check_hardware
from loader.checks.names import check_named_things, check_names
from loader.errors import ConfigError, Problems, quoted, shown
from loader.resolve.rules import backends
from loader.resolve.run_config import RunConfig, holds_nothing_out, ignores_learning_rate, warmup
from loader.resume.find_checkpoint import find_checkpoint
from loader.schema.keys import COMPONENTS, Key, component_module, keys_of, scalar_keys, shipped
from loader.schema.process_arguments import ProcessArguments
from loader.sources.config_tree import DEFAULT, Node, find, node_of
from storage.checkpoints import checkpoints
from storage.config_keys import ADAPTATION, TRAINER

# Files that mark a folder as the output of an earlier run (a failed start leaves run.yaml alone).
RUN_FILES = ("metrics.jsonl", "config.json", "model.safetensors", "adapter_config.json")

WITH_FILES = {"tensorboard", "wandb", "all"}  # reporting backends whose files `logging.save_dir` places


def check_run(run: RunConfig) -> list[str]:
    """Return every problem of a resolved run, one line each; an empty list means that it may start."""
    problems = Problems()
    check_environment(run, problems)
    _length(run, problems)
    _rules(run, problems)
    _relative_steps(run, problems)
    _optimizer_words(run, problems)
    _rates(run, problems)
    check_names(run, problems)
    check_named_things(run, problems)
    check_process_keys(run, problems)
    check_switches(run, problems)
    check_hardware(run, problems)
    _components(run, problems)
    _output_dir(run, problems)
    return problems.lines


def check_settings(run: RunConfig) -> None:
    """Raise ConfigError for keys of components that have no effect, of a saved run with other settings."""
    problems = Problems()
    check_switches(run, problems)
    if run.env is None and hasattr(run.dataset.module, "check"):
        problems.lines += run.dataset.module.check(run.dataset.config, run)
    problems.raise_if_any()


def _length(run: RunConfig, problems: Problems) -> None:
    hyper = run.hyper
    if hyper.max_steps == 0:
        problems.add(
            f"`max_steps: 0`{run.place('max_steps')} would train nothing; give a positive number, or -1 for epochs"
        )
    if hyper.num_train_epochs <= 0 and hyper.num_train_epochs != -1:
        problems.add(
            f"`num_train_epochs: {hyper.num_train_epochs:g}`{run.place('num_train_epochs')} must be greater than 0, or "
            "-1 to train until something stops it"
        )
    for name in ("limit_train_batches", "limit_val_batches"):
        share = getattr(run.process, name)
        if isinstance(share, float) and share > 1:
            problems.add(
                f"`{name}: {share:g}`{run.place(name)} must be a share of at most 1.0, or a whole number of batches"
            )
    warm = warmup(run)
    if 1 <= warm != int(warm):
        problems.add(f"`warmup_steps: {warm:g}`{run.place('warmup_steps')} must be a whole number, or a share below 1")
    for name in ("logging_steps", "save_steps", "eval_steps"):
        value = getattr(hyper, name)
        if value is not None and value > 1 and value != int(value):
            problems.add(f"`{name}: {value:g}`{run.place(name)} must be a whole number, or a share below 1")


def _rules(run: RunConfig, problems: Problems) -> None:
    """Check sections and keys that need other settings."""
    checkpointing = run.checkpointing
    if checkpointing is not None and checkpointing.dirpath and run.logging is not None and run.logging.log_model:
        problems.add(
            f"`logging.log_model`{run.place('logging.log_model')} looks for checkpoints in output_dir, not in "
            f"`checkpointing.dirpath`{run.place('checkpointing.dirpath')}; leave one out"
        )
    if run.logging is not None and run.logging.logger_type in ("CSVLogger", "TensorBoardLogger"):
        for key in run.logging.of_wandb:
            place = run.place(f"logging.{key}")
            problems.add(f"`logging.{key}`{place} means nothing to {run.logging.logger_type}; WandbLogger has it")
    reports = set(backends(run.hyper.report_to))
    writes_files = run.logging is not None and run.logging.logger_type is not None or reports & WITH_FILES
    if run.logging is not None and run.logging.save_dir and reports and not writes_files:
        problems.add(
            f"`logging.save_dir: {run.logging.save_dir}`{run.place('logging.save_dir')} has no effect on "
            f"{', '.join(sorted(reports))}; leave it out, or set logging.logger_type"
        )
    if run.hyper.save_strategy == "best" and not run.trainer.get("metric_for_best_model"):
        problems.add(f"`save_strategy: best`{run.place('save_strategy')} needs metric_for_best_model (loss, say)")
    if run.hyper.do_eval and holds_nothing_out(run) and run.on_command_line("do_eval"):
        problems.add(
            f"`do_eval`{run.place('do_eval')} has no effect: the data holds nothing out (dataset.eval_fraction is 0)"
        )


def _rates(run: RunConfig, problems: Problems) -> None:
    """Refuse a given learning rate that has no effect, as the schedule has its own rates."""
    if not ignores_learning_rate(run):
        return
    for key, is_given in (
        ("learning_rate", run.on_command_line("learning_rate")),
        ("resume_lr", run.process.resume_lr),
    ):
        if is_given:
            problems.add(
                f"`{key}: {getattr(run.process, key, run.hyper.learning_rate):g}`{run.place(key)} has no effect: "
                f"lr_scheduler_type {run.hyper.lr_scheduler_type}{run.place('lr_scheduler_type')} has all its rates "
                "from its own options; change scheduler.max_lr"
            )


def _optimizer_words(run: RunConfig, problems: Problems) -> None:
    arguments = run.trainer.get("optim_args") or ""
    if wrong := [part.strip() for part in arguments.split(",") if part.strip() and not part.partition("=")[2].strip()]:
        problems.add(
            f"`optim_args: {arguments}`{run.place('optim_args')}: `{wrong[0]}` is not of the form name=value; write "
            "`momentum=0.9, nesterov=true`"
        )


def _relative_steps(run: RunConfig, problems: Problems) -> None:
    """Refuse settings of the learning rate if Adafactor takes relative steps, which are its own schedule."""
    if not run.optimizer.get("relative_step"):
        return
    for name in (
        "lr_scheduler_type", "warmup_steps", "warmup_ratio", "warmup_epochs", "min_lr", "lr_decay_iters", "layer_decay",
    ):  # fmt: skip
        neutral = scalar_keys()[name].default
        value = getattr(run.process if hasattr(run.process, name) else run.hyper, name)
        if run.was_set(name) and value not in (neutral, "constant"):
            problems.add(
                f"`{name}`{run.place(name)} has no effect: adafactor without a learning rate takes relative "
                "steps, its own schedule; set learning_rate"
            )


def _components(run: RunConfig, problems: Problems) -> None:
    if run.dataset is None:
        problems.add(f"no data: the task `{run.hyper.task_name}` has no `dataset`; name another with --task_name")
    elif not hasattr(run.dataset.module, "check"):
        if getattr(run.dataset.config, "path", "") is None and run.env is None:
            problems.add(f"`dataset.path`{run.place('dataset.path')} is not set")
    else:
        problems.lines += run.dataset.module.check(run.dataset.config, run)
    if run.model is None:
        problems.add(f"no model: name one with --model_config; there are {quoted(shipped('model'))}")


def _output_dir(run: RunConfig, problems: Problems) -> None:
    folder, place = run.output_dir, run.place("output_dir")
    if not run.hyper.output_dir.strip():
        problems.add(f"`output_dir`{place} is empty; name a folder")
        return
    if run.checkpoint_dir != folder:
        _writable("checkpointing.dirpath", run.checkpoint_dir, run, problems)
    if run.hyper.logging_dir:
        _writable("logging_dir", Path(os.path.expanduser(run.hyper.logging_dir)), run, problems)
    if run.logging is not None and run.logging.save_dir:
        _writable("logging.save_dir", Path(os.path.expanduser(run.logging.save_dir)), run, problems)
    if not _writable("output_dir", folder, run, problems):
        return
    home, point = run.checkpoint_dir, None
    if run.wants_resume:
        from loader.resume.compatibility import resume_changes

        try:
            point = find_checkpoint(run).point
            problems.lines += resume_changes(run, point).problems if point is not None else []
        except ConfigError as error:
            problems.lines += error.problems
    parents = (folder.resolve(), home.resolve())
    is_own = run.wants_resume and (run.resumes_newest or point is None or point.folder.resolve().parent in parents)
    places = [place for place in dict.fromkeys((folder, home)) if place.is_dir() and not is_own]
    files = [*map(folder.joinpath, RUN_FILES), *(path for place in places for path in checkpoints(place))]
    if not is_own and (used := [path.name for path in files if path.exists()]):
        problems.add(
            f"`output_dir: {folder}`{place} already holds a run ({used[0]}); continue it with "
            "--resume_from_checkpoint auto, or name another --output_dir"
        )


def _writable(key: str, folder: Path, run: RunConfig, problems: Problems) -> bool:
    """Whether a folder exists and is writable, or can be created; otherwise add a problem."""
    existing, place = folder, run.place(key)
    while not os.path.lexists(existing) and existing != existing.parent:
        existing = existing.parent
    if folder.exists() and not folder.is_dir():
        problems.add(f"`{key}: {folder}`{place} is a file; name a folder")
    elif not existing.is_dir():
        problems.add(f"`{key}: {folder}`{place} cannot be made: {existing} is no folder")
    elif not os.access(existing, os.W_OK | os.X_OK):
        problems.add(f"`{key}: {folder}`{place} is not writable ({existing}); name a folder you may write to")
    else:
        return True
    return False


# Keys that choose what a run trains, and on what.
CHOICES = ("task_name", "model_config", "dataset.name", "model.name")


def check_process_keys(run: RunConfig, problems: Problems) -> None:
    """Refuse process keys that nothing in the run uses; those of a recipe for another model or data are dropped."""
    chosen = [part for part in (run.dataset, run.model, run.env, run.loss) if part is not None]
    keys = keys_of(ProcessArguments)
    always = (TRAINER, ADAPTATION) if run.model is not None else (TRAINER,)
    live = {name for name, key in keys.items() if key.used_by in always}
    live = live.union(*(getattr(part.module, "PROCESS_KEYS", ()) for part in chosen))
    if run.model is not None:
        adapt = importlib.import_module("models.adapt")  # found by name, as components are
        module = run.model.module
        parts, process_keys = getattr(module, "PARTS", None), getattr(module, "PROCESS_KEYS", ())
        for line in adapt.check(parts, run.process, process_keys):
            problems.add(_placed(line, run))
    chosen_at = max(run.layer_index(path) for path in CHOICES)
    for name, key in keys.items():
        value = getattr(run.process, name)
        if value == key.default:
            continue
        if name in live:
            if key.needs is not None and not getattr(run.process, key.needs):
                problems.add(f"`{name}: {shown(value)}`{run.place(name)} has no effect without `{key.needs}`; set that")
            continue
        if run.layer_index(name) < chosen_at:  # of a recipe for another model or other data
            run.notes.append(f"`{name}: {shown(value)}` ({run.origins()[name]}) is dropped: nothing here uses it")
            setattr(run.process, name, key.default)
            run.tree.value[name] = Node(key.default, DEFAULT)
            continue
        users = _users(name)
        able = f"; used by {users}" if users else " yet"
        problems.add(
            f"`{name}: {shown(value)}`{run.place(name)} has no effect: no model or data here uses `{name}`"
            f"{able}; set it to {shown(key.default)}"
        )


def _placed(line: str, run: RunConfig) -> str:
    """Insert the place that set a key into a line that begins with the key."""
    match = re.match(r"`(\w+)[^`]*`", line)
    return line if match is None else f"{match[0]}{run.place(match[1])}{line[match.end() :]}"


def _users(name: str) -> str:
    """Return the components of Keel that use a process key, for an error line."""
    users = []
    for section in COMPONENTS:
        for component in shipped(section):
            if name in getattr(component_module(section, component), "PROCESS_KEYS", ()):
                users.append(f"{section} {component}")
    return quoted(users)


# ---- keys of components that have no effect beside another key ----


def check_switches(run: RunConfig, problems: Problems) -> None:
    """Refuse a key without effect (`needs`, `unless`); drop it if a later layer than its own has made it so."""
    for section in COMPONENTS:
        component = getattr(run, section)
        if component is not None:
            _check(section, component.config, component.config, run, problems)


def _check(path: str, config: Any, component: Any, run: RunConfig, problems: Problems) -> None:
    """Check the keys of `config`, which is the section at `path` of a component's configuration."""
    for name, key in keys_of(type(config)).items():
        value = getattr(config, name)
        other = next((other for other in key.unless if _value(component, other)), None)
        is_off = not _is_on(config, key)
        if not is_off and (other is None or not value):  # 0, for one, is no contradiction
            if dataclasses.is_dataclass(value):
                _check(f"{path}.{name}", value, component, run, problems)
            continue
        switch = f"{path}.{key.needs}" if is_off else f"{path.partition('.')[0]}.{other}"
        if is_off:
            needed = f"`{switch}`" if key.needs_value is None else f"`{switch}: {' or '.join(key.needs_value)}`"
            refusal = f"without {needed}; set that, or leave it out"
            reason = f"`{switch}` is {shown(getattr(config, key.needs))}"
        else:
            given = f"`{switch}: {shown(_value(component, other))}`"
            refusal, reason = f"beside {given}; keep one", f"{given} has precedence"
        for holder, holder_path, field, default in list(_changed(config, path, name, key.default)):
            changed = f"{holder_path}.{field}"
            text = f"`{changed}: {shown(getattr(holder, field))}`"
            if run.layer_index(changed) >= run.layer_index(switch):
                problems.add(f"{text}{run.place(changed)} has no effect {refusal}")
                continue
            run.notes.append(f"{text} ({run.origins()[changed]}) is dropped: {reason}")
            setattr(holder, field, default)
            find(run.tree, holder_path).value[field] = node_of(default, DEFAULT)


def _is_on(config: Any, key: Key) -> bool:
    """Whether the switch of a key, if it has one, is on or has one of the values that the key needs."""
    if key.needs is None:
        return True
    value = getattr(config, key.needs)
    return bool(value) if key.needs_value is None else value in key.needs_value


def _value(config: Any, path: str) -> Any:
    """The value of a key; None if a section on its path is not set."""
    for name in path.split("."):
        config = getattr(config, name, None)
    return config


def _changed(config: Any, path: str, name: str, default: Any) -> Iterator[tuple[Any, str, str, Any]]:
    """(dataclass, its path, field, default) of a key, or of each key in a section, that is not at its default."""
    value = getattr(config, name)
    if dataclasses.is_dataclass(value):
        for inner, key in keys_of(type(value)).items():
            yield from _changed(value, f"{path}.{name}", inner, key.default)
    elif value != default:
        yield config, path, name, default
