"""What may change when a run goes on from a checkpoint: every difference found, classed, refused or applied.

Harmless differences are applied; those that change where the training goes are refused unless `resume_changed: allow`,
and then applied and recorded; what would not fit the checkpoint is refused always. Rates, length and batch have rules
of their own. What is refused is said all together, with both values and where each came from.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from .checkpoint_facts import Facts
from .errors import shown
from .global_batch import ACCUMULATED, GLOBAL, PER_DEVICE, batch_line, launched_processes
from .resume_classes import (
    EVALUATION,
    HARMLESS,
    IMPOSSIBLE,
    RULED,
    TRAJECTORY,
    UNKNOWN,
    class_of,
    class_of_optim,
    class_of_option,
)
from .resume_length import check_length
from .run_config import RunConfig, read_saved
from .schema import TAKEN_OVER, scalar_keys
from .sections import COMPONENTS, OPTIONAL_SECTIONS, EmaSection
from .settle import PLATEAUS
from .trainer_fields import REQUIRED

NEW_RUN = "begin a new run from its weights (model_name_or_path with is_pretrained or load_pretrain)"
# Said in sections here, and so not twice.
SAID_ELSEWHERE = ("optim_args", "lr_scheduler_kwargs")
# Another of these leaves the earlier one's arguments behind.
OWNERS = {"optim": "optimizer", "lr_scheduler_type": "scheduler", "dataset.name": "dataset", "model.name": "model"}
HISTORY = "resumed.json"
ON, OFF = "on", "off"  # an optional section that is there, and one that is not
TRAINING_LOSS = ("loss", "train_loss", "train/loss")


@dataclass(frozen=True)
class Change:
    """One key that is another now; `after_place` ends in nothing where the value is a default."""

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


@dataclass
class ResumeChanges:
    """How a run differs from the one that wrote a checkpoint.

    Attributes:
        problems: Why it cannot go on, one line each; empty: it can.
        lines: What to print where it goes on: each change that matters.
        record: The same for `resumed.json`: key -> before, after, origin.
        optimizer_changed: Rates, decays or arguments of the optimizer's groups are others.
        schedule_changed: Another schedule, which begins at the checkpoint's step.
        length_changed: The run has another number of steps.
        best_changed: Which checkpoint is best is measured otherwise.
    """

    earlier: RunConfig
    facts: Facts
    problems: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    record: dict[str, dict[str, Any]] = field(default_factory=dict)
    optimizer_changed: bool = False
    schedule_changed: bool = False
    length_changed: bool = False
    best_changed: bool = False

    def apply(self, change: Change, line: str) -> None:
        self.lines.append(line)
        self.record[change.path] = change.recorded()

    def data(self, run: RunConfig, checkpoint: Path, difference: str) -> None:
        """The data is not what it was: only the data itself could say so."""
        if run.hyper.resume_changed == "refuse":
            self.problems.append(
                f"the data is not what {checkpoint} was trained on: {difference}; put that data back, allow it with "
                f"--resume_changed allow, or {NEW_RUN}"
            )
            return
        self.lines.append(f"changed on resume: the data, {difference}")
        self.record["data"] = {"before": str(checkpoint), "after": difference, "origin": "dataset"}

    def history(self, checkpoint: Path) -> list[dict[str, Any]]:
        """What `resumed.json` says from now on: every earlier change, and those of this resume."""
        try:
            before = json.loads((checkpoint / HISTORY).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            before = []
        return [*before, *([{"step": self.facts.step, "changed": self.record}] if self.record else [])]


def resume_changes(run: RunConfig, checkpoint: Path) -> ResumeChanges:
    """Compares a run with the one that wrote a (whole) checkpoint."""
    found = ResumeChanges(read_saved(checkpoint / "run.yaml"), Facts(checkpoint))
    compared = _Compared(run, found.earlier, checkpoint)
    changes = compared.changes()
    for change in changes:
        _judge(run, change, compared, found)
    by_path = {each.path: each for each in changes}
    _rates(run, by_path, found)
    _batch(run, compared, found)
    _length(run, by_path, compared, found)
    return found


def _judge(run: RunConfig, change: Change, compared: _Compared, found: ResumeChanges) -> None:
    kind = compared.class_of(change)
    if kind == EVALUATION:
        kind = TRAJECTORY if _follows_evaluation(run) or _follows_evaluation(found.earlier) else HARMLESS
    found.best_changed |= change.path in ("metric_for_best_model", "greater_is_better")
    name = compared.checkpoint.name
    if kind == IMPOSSIBLE:
        found.problems.append(
            f"{change.now}, and {name} was trained with {change.was}: what it holds does not fit; set it back, or "
            f"{NEW_RUN}"
        )
    elif kind == TRAJECTORY and run.hyper.resume_changed == "refuse":
        found.problems.append(
            f"{change.now}, and {name} was trained with {change.was}: it changes where the training goes; set it back, "
            "or allow it with --resume_changed allow"
        )
    elif kind == TRAJECTORY:
        found.apply(change, f"changed on resume: {change.now}, was {change.was}")
        top = change.path.split(".")[0]
        found.optimizer_changed |= top in ("optim", "optimizer", "adam_beta1", "adam_beta2", "adam_epsilon", "lora_lr")
        found.optimizer_changed |= top.startswith("param_groups")
        found.schedule_changed |= top == "lr_scheduler_type"


def _follows_evaluation(run: RunConfig) -> bool:
    """Whether the rates or the end of the run are decided by what an evaluation finds."""
    plateau = run.hyper.lr_scheduler_type in PLATEAUS and run.schedule.monitor not in TRAINING_LOSS
    stops = run.early_stopping is not None and run.early_stopping.monitor not in TRAINING_LOSS
    return plateau or stops


# ---- rates ----


def _rates(run: RunConfig, changes: dict[str, Change], found: ResumeChanges) -> None:
    """A learning rate or weight decay that is another now does what resume_lr and resume_weight_decay say."""
    for key, explicit in (("learning_rate", "resume_lr"), ("weight_decay", "resume_weight_decay")):
        change, stated = changes.get(key), getattr(run.process, explicit)
        if stated is not None and explicit in changes:
            found.apply(changes[explicit], f"{changes[explicit].now}, from here on")
        if change is None:
            continue
        if stated is not None and stated != change.after:
            found.problems.append(
                f"{change.now} (it was {change.was}) and `{explicit}: {stated:g}`{run.place(explicit)} both change it "
                "on resume; keep one"
            )
            continue
        found.apply(change, f"{explicit} {change.after:g}: {change.now}, was {change.was}")
        found.optimizer_changed = True


# ---- batch ----


def _batch(run: RunConfig, compared: _Compared, found: ResumeChanges) -> None:
    """Batch per device, accumulation and processes: free where their product stays."""
    facts = found.facts
    before = facts.batch
    after = (run.hyper.per_device_train_batch_size, run.trainer.get(ACCUMULATED, 1), launched_processes())
    if before is None:
        return
    if run.process.tune_batch_size:  # a resumed run keeps the size that was found
        after = (before[0], *after[1:])
    if before == after:
        return
    total, new = math.prod(before), math.prod(after)
    was, now = batch_line(*before), batch_line(*after)
    name, places = compared.checkpoint.name, {key: run.place(key) for key in (PER_DEVICE, ACCUMULATED, GLOBAL)}
    differ = [
        f"`{key}: {new}`{places[key] or ' (default)'}"
        for key, old, new in zip((PER_DEVICE, ACCUMULATED), before, after, strict=False)
        if old != new
    ] or [f"{after[2]} process{'es' * (after[2] > 1)}"]
    change = Change("batch", was, now, name, next(filter(None, places.values()), ""))
    said = f"{' and '.join(differ)}: a batch of {now}, and {name} was trained with {was}"
    if total == new and not (before[0] != after[0] and draws_by_batch(run)):
        found.apply(change, f"batch {now}, {name}'s was {was}: the same {total} samples a step, in the same order")
        return
    if total == new:
        why = "with several data sets each batch is of one of them, so its size decides which"
        remedy = f"set {PER_DEVICE} {before[0]}"
    else:
        why = f"a step was of {total} samples and would be of {new}"
        remedy = f"set global_batch_size {total}" + _fitting(total, after)
    if run.hyper.max_steps <= 0 and total != new and not run.is_endless:
        found.problems.append(
            f"{said}: {why}, and the length in epochs would be another "
            f"number of steps; {remedy}, or say the length as max_steps"
        )
    elif run.hyper.resume_changed == "refuse":
        found.problems.append(f"{said}: {why}; {remedy}, or allow it with --resume_changed allow")
    else:
        found.apply(change, f"changed on resume: batch {now}, was {was}")


def _fitting(total: int, after: tuple[int, int, int]) -> str:
    """What the wanted size means on the processes of now."""
    size, _, processes = after
    if total % processes:
        return f" (it needs a number of processes that divides it, not {processes})"
    share = total // processes
    fits = size if share % size == 0 else next(each for each in range(min(size, share), 0, -1) if share % each == 0)
    return f" ({PER_DEVICE} {fits}, {ACCUMULATED} {share // fits})"


def draws_by_batch(run: RunConfig) -> bool:
    """Whether the data decides anew for each batch what it is of."""
    asked = getattr(run.dataset.module, "draws_by_batch", None) if run.dataset is not None else None
    return bool(asked and asked(run.dataset.config))


# ---- length ----


def _length(run: RunConfig, changes: dict[str, Change], compared: _Compared, found: ResumeChanges) -> None:
    names = ["max_steps", "num_train_epochs"] if run.hyper.max_steps <= 0 else ["max_steps"]
    names += ["num_train_epochs"] if found.earlier.hyper.max_steps <= 0 else []
    changed = [changes[name] for name in dict.fromkeys(names) if name in changes]
    if not changed:
        return
    change = next((each for each in changed if each.after_place), changed[0])
    problems, line = check_length(run, found, compared.checkpoint.name, change.now)
    found.problems += problems
    if line and not problems:
        found.length_changed = True
        found.apply(change, line)
    if line and not problems and getattr(getattr(run.dataset, "config", None), "sampling_probs_final", None):
        said = f"{change.now} moves where dataset.sampling_probs_final is reached"
        if run.hyper.resume_changed == "refuse":
            found.problems.append(f"{said}; set it back, or allow it with --resume_changed allow")
        else:
            found.lines.append(f"changed on resume: {said}")


# ---- what differs ----


class _Compared:
    """Two runs' settings beside one another."""

    def __init__(self, run: RunConfig, earlier: RunConfig, checkpoint: Path):
        self.run, self.earlier, self.checkpoint = run, earlier, checkpoint
        self.then, self.now = settings_of(earlier), settings_of(run)

    def changes(self) -> list[Change]:
        found = []
        for path in dict.fromkeys([*self.now, *self.then]):
            before, after = self.then.get(path), self.now.get(path)
            if not _same(before, after) and not self._follows_another(path):
                found.append(Change(path, before, after, self._origin(path), self._place(path)))
        return found

    def _follows_another(self, path: str) -> bool:
        """Whether a difference only comes with that of another key: a section's that is new, an optimizer's."""
        section = path.partition(".")[0]
        if section == path or path in OWNERS:
            return section == "ema" and self.then["using_ema"] != self.now["using_ema"]
        owner = next((key for key, its in OWNERS.items() if its == section), section)
        before, after = self.then.get(owner), self.now.get(owner)
        return (
            owner in self.then
            and before != after
            and not (owner == "optim" and class_of_optim(before, after) == TRAJECTORY)
        )

    def class_of(self, change: Change) -> str:
        path = change.path
        if path == "optim":
            return class_of_optim(change.before, change.after)
        if path.startswith("optimizer."):
            return class_of_option(change.before, change.after, path.partition(".")[2])
        if path == "lora_lr" and None in (change.before, change.after):
            return IMPOSSIBLE  # a group of its own, or none
        if path == "seed" and self.earlier.process.lora_enable and not self.earlier.process.model_name_or_path:
            return IMPOSSIBLE  # the adapter was trained on random weights, which follow from the seed
        return class_of(class_key(self.run, path)) or UNKNOWN

    def _place(self, path: str) -> str:
        found = self.run.place(path)
        for home in SAID_ELSEWHERE if not found and "." in path else ():
            found = found or self.run.place(home) * ({"optimizer": "optim_args"}.get(path.split(".")[0]) == home)
            found = found or self.run.place(home) * (path.startswith("scheduler.") and home == "lr_scheduler_kwargs")
        return found or self.run.place(path.split(".")[0].partition("[")[0]) * ("[" in path)

    def _origin(self, path: str) -> str:
        """Where the earlier value came from, as its run.yaml says behind it; that file has one value a line."""
        place = self.earlier.place(path) or self.earlier.place(path.partition("[")[0].split(".")[0]) * ("[" in path)
        line = place.rpartition(":")[0].rpartition(":")[2]
        if not line.isdecimal() or int(line) > len(self._text):
            return "default"
        return self._text[int(line) - 1].rpartition("  # ")[2] or "run.yaml"

    @cached_property
    def _text(self) -> list[str]:
        return (self.checkpoint / "run.yaml").read_text(encoding="utf-8").splitlines()


def _same(before: Any, after: Any) -> bool:
    if isinstance(before, (list, tuple)) and isinstance(after, (list, tuple)):
        return list(before) == list(after)
    return before == after and isinstance(before, bool) == isinstance(after, bool)


def class_key(run: RunConfig, path: str) -> str:
    """A path as `resume_classes.KEYS` writes it: components with their name, list entries without their number."""
    top, dot, rest = path.partition(".")
    top = top.partition("[")[0]
    component = getattr(run, top, None) if top in COMPONENTS else None
    return f"{top}({component.name}){dot}{rest}" if component is not None and rest != "name" else f"{top}{dot}{rest}"


def settings_of(run: RunConfig) -> dict[str, Any]:
    """Every setting of a run by its path, those that nobody gave at their defaults, however they were written."""
    from .training_arguments import OWN_DEFAULTS

    settings: dict[str, Any] = {}
    for name, key in scalar_keys().items():
        if name in TAKEN_OVER or name in SAID_ELSEWHERE:
            continue
        default = OWN_DEFAULTS.get(name, None if key.default is REQUIRED else key.default)
        for view in (run.hyper, run.process):
            default = getattr(view, name, default)
        settings |= _flat(name, run.trainer.get(name, default))
    settings["report_to"] = run.hyper.report_to
    settings |= _flat("optimizer", {**_trainer_options(run), **run.optimizer_options})
    given = {**(run.trainer.get("lr_scheduler_kwargs") or {}), **run.scheduler}
    settings |= _flat("scheduler", {**given, **_fields(run.schedule, ("interval", "frequency", "monitor"))})
    for index, group in enumerate(run.param_groups):
        settings |= _flat(f"param_groups[{index}]", dataclasses.asdict(group))
    settings["callbacks"] = run.callbacks
    views = {section: getattr(run, section) for section in OPTIONAL_SECTIONS}
    views["ema"] = (run.ema or EmaSection()) if run.process.using_ema else None
    for section, view in views.items():
        settings |= {section: OFF} if view is None else {section: ON, **_flat(section, dataclasses.asdict(view))}
    for section in COMPONENTS:
        part = getattr(run, section)
        settings[f"{section}.name"] = None if part is None else part.name
        if part is not None and dataclasses.is_dataclass(part.config):
            settings |= _flat(section, dataclasses.asdict(part.config))
    return settings


def _trainer_options(run: RunConfig) -> dict[str, Any]:
    """`optim_args` of an optimizer that transformers builds: `name=value, …`."""
    words = [each.partition("=") for each in (run.trainer.get("optim_args") or "").split(",") if each.strip()]
    return {name.strip(): _number(value.strip()) for name, _, value in words}


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def _fields(view: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(view, name) for name in names}


def _flat(path: str, value: Any) -> dict[str, Any]:
    """A mapping as one entry for each value in it."""
    if not isinstance(value, dict) or not value:
        return {path: None if value == {} else value}
    return {name: each for key, child in value.items() for name, each in _flat(f"{path}.{key}", child).items()}


def unclassed() -> list[str]:
    """Keys of a configuration that have no class."""
    from .component import component_module, shipped
    from .schema import keys_of
    from .sections import FREE_SECTIONS, LIST_SECTIONS

    keys = [name for name in scalar_keys() if name not in TAKEN_OVER]
    sections = {**OPTIONAL_SECTIONS, **FREE_SECTIONS, **{k: v for k, v in LIST_SECTIONS.items() if v is not None}}
    keys += [f"{section}.{name}" for section, kind in sections.items() for name in keys_of(kind)]
    keys += [name for name, kind in LIST_SECTIONS.items() if kind is None]
    for section in COMPONENTS:
        keys.append(f"{section}.name")
        for name in shipped(section):
            config = component_module(section, name).Config
            keys += [f"{section}({name}).{key}" for key in keys_of(config)]
    return [key for key in keys if class_of(key) is None]


__all__ = ["RULED", "Change", "ResumeChanges", "resume_changes", "unclassed"]
