"""Compare the settings of two runs, every difference with the origins of both values, and what describes their data."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loader.errors import shown
from loader.resolve.run_config import OWN_DEFAULTS, RunConfig, eval_strategy, schedule_counts_epochs, warmup
from loader.resolve.type_check import members
from loader.resume.find_checkpoint import ResumePoint
from loader.schema.installed import REQUIRED
from loader.schema.keys import COMPONENTS, OPTIONAL_SECTIONS, REPLACED, scalar_keys
from loader.sources.config_tree import find
from storage import safe_read
from storage.config_keys import IMPOSSIBLE, TRAJECTORY

# Sections and the keys with the same meaning, which are compared only once.
SAME_AS = {"optimizer": "optim_args", "scheduler": "lr_scheduler_kwargs"}
# Choosing another of these drops the arguments of the earlier one.
OWNERS = {"optim": "optimizer", "lr_scheduler_type": "scheduler", "dataset.name": "dataset", "model.name": "model"}
# Constructor arguments of optimizers that decide the shape of their state.
STATE_SHAPE = ("rank", "proj_type", "optim_bits", "block_size", "merge_dims", "max_preconditioner_dim")
# Constructor switches that keep no state.
STATELESS = ("nesterov", "maximize", "foreach", "fused", "capturable", "differentiable", "decoupled_weight_decay")
# Different names of one algorithm, with the same state.
SAME_OPTIMIZER = ({"adamw_torch", "adamw_torch_fused", "AdamW"},)
ON, OFF = "on", "off"  # an optional section that is there, and one that is not


@dataclass(frozen=True)
class Change:
    """A key whose value has changed; `after_place` is empty for a default."""

    path: str
    before: Any
    after: Any
    before_origin: str
    after_place: str

    @property
    def now(self) -> str:
        return f"`{self.path}: {shown(self.after)}`{self.after_place or ' (default)'}"

    @property
    def was(self) -> str:
        return f"{shown(self.before)} ({self.before_origin})"

    def recorded(self) -> dict[str, Any]:
        origin = self.after_place.removeprefix(" at ").removeprefix(" in ").removeprefix(" on ") or "default"
        return {"before": self.before, "after": self.after, "origin": origin}


def differences(run: RunConfig, point: ResumePoint) -> list[Change]:
    """Return what differs between a run and the one that wrote a checkpoint; of a new section, only that it is new."""
    now, then = settings_of(run), settings_of(point.run)
    changed = [path for path in dict.fromkeys([*now, *then]) if not _same(path, then.get(path), now.get(path))]
    return [
        Change(path, then.get(path), now.get(path), _recorded_origin(point, path), _place(run, path))
        for path in changed
        if not _follows_another(path, then, now)
    ]


def _follows_another(path: str, then: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether a difference only follows from that of another key: a new section, another optimizer."""
    section = path.partition(".")[0]
    if path in ("eval_steps", "check_val_every_n_epoch"):
        return then["eval_strategy"] != now["eval_strategy"]
    if section == path or path in OWNERS:
        return section == "ema" and then["using_ema"] != now["using_ema"]
    owner = next((key for key, its in OWNERS.items() if its == section), section)
    if owner not in then or then[owner] == now.get(owner):
        return False
    return owner != "optim" or class_of_optimizer(then[owner], now[owner]) != TRAJECTORY


def _candidates(run: RunConfig, path: str) -> list[str]:
    """Return the keys that may give a setting."""
    section = path.partition(".")[0]
    return [
        _stands_for(run, path),
        *([SAME_AS[section]] if section in SAME_AS else []),
        *([path.partition("[")[0]] if "[" in path else []),
    ]


def _stands_for(run: RunConfig, path: str) -> str:
    """Return the key that decides about a setting, if it is not the setting's own."""
    if path == "eval_steps" and run.hyper.eval_steps is None:
        return "save_steps"
    if path == "eval_strategy" and run.process.check_val_every_n_epoch is not None and run.hyper.do_eval:
        return "check_val_every_n_epoch"
    if path == "eval_strategy" and not run.trainer.get("eval_strategy"):
        return "do_eval"
    return "warmup_ratio" if path == "warmup_steps" and run.hyper.warmup_ratio > 0 else path


def _place(run: RunConfig, path: str) -> str:
    """Return ` at FILE:LINE:COLUMN`; empty for a default."""
    return next(filter(None, map(run.place, _candidates(run, path))), "")


def _recorded_origin(point: ResumePoint, path: str) -> str:
    """Return the origin of an earlier value from the comment in run.yaml: `cli`, `default`, `FILE:LINE`."""
    lines = point.run_lines
    node = next(filter(None, (find(point.run.tree, way) for way in _candidates(point.run, path))), None)
    number = node.origin.line if node is not None else None
    if number is None or not 0 < number <= len(lines):
        return "default"
    return lines[number - 1].rpartition("  # ")[2] if "  # " in lines[number - 1] else "run.yaml"


def _same(path: str, before: Any, after: Any) -> bool:
    if isinstance(before, (list, tuple)) and isinstance(after, (list, tuple)):
        return len(before) == len(after) and all(_same(path, *pair) for pair in zip(before, after, strict=True))
    if isinstance(before, str) and isinstance(after, str):
        return before == after or _is_one_file(before, after)
    by_type = isinstance(before, bool) or isinstance(after, bool) or _counts_or_shares(path)
    return before == after and (type(before) is type(after) or not by_type)


def _counts_or_shares(path: str) -> bool:
    """Whether an integer is a count and a float a share: 1 is one batch, 1.0 all of them."""
    key = scalar_keys().get(path)
    return key is not None and {int, float} <= {*members(key.annotation)}


def _is_one_file(before: str, after: str) -> bool:
    """Whether two texts name one file or folder of this machine."""
    try:
        return os.path.samefile(os.path.expanduser(before), os.path.expanduser(after))
    except (OSError, ValueError):
        return False


def settings_of(run: RunConfig) -> dict[str, Any]:
    """Return every setting of a run by its path, defaults included, independent of how it was written."""
    settings: dict[str, Any] = {}
    for name, key in scalar_keys().items():
        if name in REPLACED or name in SAME_AS.values():
            continue
        default = OWN_DEFAULTS.get(name, None if key.default is REQUIRED else key.default)
        for view in (run.hyper, run.process):
            default = getattr(view, name, default)
        settings |= _flat(name, run.trainer.get(name, default))
    settings["report_to"] = run.hyper.report_to
    # Settings that follow from several keys.
    strategy = eval_strategy(run)
    steps = run.hyper.save_steps if run.hyper.eval_steps is None else run.hyper.eval_steps
    settings |= {"eval_strategy": strategy, "eval_steps": steps if strategy == "steps" else None}
    settings["check_val_every_n_epoch"] = (run.process.check_val_every_n_epoch or 1) if strategy == "epoch" else None
    settings["warmup_steps"] = warmup(run)
    del settings["do_eval"], settings["warmup_ratio"]
    settings |= _flat("optimizer", {**run.optim_args, **run.optimizer})
    given = {**(run.trainer.get("lr_scheduler_kwargs") or {}), **run.scheduler}
    schedule = run.schedule
    counted = schedule.interval or ("epoch" if schedule_counts_epochs(run) else "step")
    declared = {"interval": counted, "frequency": schedule.frequency, "monitor": schedule.monitor}
    settings |= _flat("scheduler", {**given, **declared})
    for index, group in enumerate(run.param_groups):
        settings |= _flat(f"param_groups[{index}]", dataclasses.asdict(group))
    settings["callbacks"] = run.callbacks
    views = {section: getattr(run, section) for section in OPTIONAL_SECTIONS}
    views["ema"] = (run.ema or OPTIONAL_SECTIONS["ema"]()) if run.process.using_ema else None
    for section, view in views.items():
        settings |= {section: OFF} if view is None else {section: ON, **_flat(section, dataclasses.asdict(view))}
    for section in COMPONENTS:
        part = getattr(run, section)
        settings[f"{section}.name"] = None if part is None else part.name
        if part is not None and dataclasses.is_dataclass(part.config):
            settings |= _flat(section, dataclasses.asdict(part.config))
    return settings


def _flat(path: str, value: Any) -> dict[str, Any]:
    """Flatten a mapping to one entry for each value."""
    if not isinstance(value, dict) or not value:
        return {path: None if value == {} else value}
    return {name: leaf for key, child in value.items() for name, leaf in _flat(f"{path}.{key}", child).items()}


# ---- settings of the optimizer; other keys declare what a change means (`on_resume`) ----


def class_of_option(before: Any, after: Any, option: str) -> str:
    """Classify a changed constructor argument of the optimizer.

    A number is read at each step, so that another one changes the trajectory only. An argument that was null, or a
    momentum that was 0, has no state yet; an argument that is not a number decides what the state contains.
    """
    if option in STATELESS:
        return TRAJECTORY
    numbers = _is_numeric(before) and _is_numeric(after)
    appears = "momentum" in option and bool(before) != bool(after)
    return IMPOSSIBLE if option in STATE_SHAPE or not numbers or appears else TRAJECTORY


def class_of_optimizer(before: str, after: str) -> str:
    """Classify a change of the optimizer itself."""
    return TRAJECTORY if any({before, after} <= names for names in SAME_OPTIMIZER) else IMPOSSIBLE


def _is_numeric(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return bool(value) and all(map(_is_numeric, value))
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# ---- the data ----


def changed_data(files: Mapping[str, Any], folder: Path) -> str | None:
    """Return where a run's data differs from that of a checkpoint; None: nowhere, or nothing is known of it.

    Args:
        files: What describes the data: file name -> JSON value, see `Bundle.files`.
        folder: The checkpoint.
    """
    for name, now in files.items():
        try:
            before = safe_read.read_json(folder / name)
        except FileNotFoundError:
            continue
        except (ValueError, OSError):
            return f"{name} there is damaged"
        if place := first_difference(before, now):
            return f"{place} ({name})"
    return None


def first_difference(before: Any, now: Any, path: str = "") -> str | None:
    """Return where two JSON values differ, ignoring rounding of other machines; None: nowhere."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = dict.fromkeys([*before, *now])
        pairs = [(f"{path}.{key}".strip("."), before.get(key), now.get(key)) for key in keys]
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = [(f"{path}[{number}]", *pair) for number, pair in enumerate(zip(before, now, strict=True))]
    elif isinstance(before, float) and isinstance(now, (int, float)):
        return None if math.isclose(before, now, rel_tol=1e-4, abs_tol=1e-7) else f"{path} was {before:g}, is {now:g}"
    else:
        return None if before == now else f"{path} was {before}, is {now}"
    return next(filter(None, (first_difference(*pair[1:], pair[0]) for pair in pairs)), None)
