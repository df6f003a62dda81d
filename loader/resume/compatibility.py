"""What may change on resume: find every difference to the checkpoint's run, classify it, and refuse or apply it.

Harmless differences are applied. Those that change the trajectory are refused, unless `resume_changed: allow`; then
they are applied and recorded. What does not fit the checkpoint is always refused. Rates, length and batch have their
own rules. All refusals are reported together, with both values and their origins.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from loader.resolve.rules import PLATEAUS
from loader.resolve.run_config import (
    ACCUMULATED,
    GLOBAL,
    PER_DEVICE,
    TRAINING_LOSS,
    TRAINING_METRICS,
    RunConfig,
    batch_line,
    ignores_learning_rate,
    launched_processes,
)
from loader.resume.config_diff import Change, class_of_optimizer, class_of_option, differences, settings_of
from loader.resume.find_checkpoint import MODEL_ALONE, NEW_RUN, ResumePoint
from loader.schema.keys import COMPONENTS, on_resume
from loader.sources.config_tree import node_of
from storage import safe_read
from storage.config_keys import EVALUATION, EVALUATION_TIME, HARMLESS, IMPOSSIBLE, LOGGING, TRAJECTORY

HISTORY = "resumed.json"
ENDLESS = 10**7  # steps; a run without an end has more
# Keys and sections that decide, or may decide, how many steps an epoch has.
OF_AN_EPOCH = (
    "limit_train_batches", "dataloader_drop_last", "dataset", "shuffle", "episode_first", "skip_mirrored_data",
    "accelerator_config",
)  # fmt: skip
OF_THE_OPTIMIZER = (
    "optim", "optimizer", "adam_beta1", "adam_beta2", "adam_epsilon", "lora_lr", "param_groups", "layer_decay",
)  # fmt: skip
WINDOW = ("dataset.window", "dataset.overlap", "dataset.unit")  # what `resume_context` may come with


@dataclass
class ResumeChanges:
    """How a run differs from the one that wrote a checkpoint.

    Attributes:
        problems: Why the run cannot resume, one line each; empty if it can.
        lines: What to print if it resumes: each change that matters.
        record: The same for `resumed.json`: key -> before, after, origin.
        optimizer_changed: Rates, decays or arguments of the optimizer's groups have changed.
        schedule_changed: Another schedule, which begins at the checkpoint's step.
        length_setting: What gives the run another number of steps, for error lines; None: the number is the same.
        best_changed: The metric for the best checkpoint has changed.
    """

    point: ResumePoint
    problems: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    record: dict[str, dict[str, Any]] = field(default_factory=dict)
    optimizer_changed: bool = False
    schedule_changed: bool = False
    length_setting: str | None = None
    best_changed: bool = False

    def apply(self, change: Change, line: str) -> None:
        self.lines.append(line)
        self.record[change.path] = change.recorded()

    def refuse_unless_allowed(self, run: RunConfig, statement: str, remedy: str) -> bool:
        """Add a problem, unless `resume_changed: allow`; returns whether the change is refused."""
        if run.hyper.resume_changed == "refuse":
            self.problems.append(f"{statement}; {remedy}, or allow it with --resume_changed allow")
        return run.hyper.resume_changed == "refuse"

    def data(self, run: RunConfig, difference: str) -> None:
        """Refuse or record data that differs from the checkpoint's; known only once the data is there."""
        folder = self.point.folder
        statement = f"the data is not what {folder} was trained on: {difference}"
        if not self.refuse_unless_allowed(run, statement, f"put that data back, {NEW_RUN}"):
            self.lines.append(f"changed on resume: the data, {difference}")
            self.record["data"] = {"before": str(folder), "after": difference, "origin": "dataset"}

    def history(self) -> list[dict[str, Any]]:
        """Return the content of `resumed.json`: the changes of every earlier resume, and of this one."""
        try:
            before = json.loads((self.point.folder / HISTORY).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            before = []
        return [*before, *([{"step": self.point.step, "changed": self.record}] if self.record else [])]


def resume_changes(run: RunConfig, point: ResumePoint, total: int | None = None) -> ResumeChanges:
    """Compare a run with the one that wrote a checkpoint.

    Whether the learning rate allows another length is not decided here, but by the schedule itself when the run starts.

    Args:
        total: Steps of the run with the data that it has now; None: the data has not been read.
    """
    outcome = ResumeChanges(point)
    changes = {change.path: change for change in differences(run, point)}
    for change in changes.values():
        _judge(run, change, outcome)
    _rates(run, changes, outcome)
    _batch(run, outcome)
    _length(run, changes, outcome, total)
    return outcome


def _judge(run: RunConfig, change: Change, outcome: ResumeChanges) -> None:
    earlier, name = outcome.point.run, outcome.point.folder.name
    kind = class_of_change(run, change, earlier)
    if kind in (EVALUATION, EVALUATION_TIME, LOGGING):
        kind = TRAJECTORY if _follows(run, kind) or _follows(earlier, kind) else HARMLESS
    outcome.best_changed |= change.path in ("metric_for_best_model", "greater_is_better")
    if kind == IMPOSSIBLE:
        longer = ", set resume_context to read longer windows" if change.path in WINDOW else ""
        outcome.problems.append(
            f"{change.now}, and {name} was trained with {change.was}: its state does not fit; set it back{longer}, or "
            f"{NEW_RUN}"
        )
    elif kind == TRAJECTORY:
        statement = f"{change.now}, and {name} was trained with {change.was}: it changes the trajectory"
        if outcome.refuse_unless_allowed(run, statement, "set it back"):
            return
        outcome.apply(change, f"changed on resume: {change.now}, was {change.was}")
        outcome.optimizer_changed |= change.path.partition(".")[0].partition("[")[0] in OF_THE_OPTIMIZER
        outcome.schedule_changed |= change.path == "lr_scheduler_type"


def class_of_change(run: RunConfig, change: Change, earlier: RunConfig) -> str:
    """Classify what a change means for the resumed run, see `on_resume` in `storage/config_keys.py`."""
    path = change.path
    if path == "optim":
        return class_of_optimizer(change.before, change.after)
    if path.startswith("optimizer."):
        return class_of_option(change.before, change.after, path.partition(".")[2])
    if path in WINDOW and run.process.resume_context is not None:
        return HARMLESS  # that is what resume_context is for
    if path == "lora_lr" and None in (change.before, change.after):
        return IMPOSSIBLE  # the adapter is a parameter group, or is not
    if path == "layer_decay" and 1 in (change.before, change.after):
        return IMPOSSIBLE  # each block is a parameter group, or is not
    if path == "seed" and earlier.process.lora_enable and not earlier.process.model_name_or_path:
        return IMPOSSIBLE  # the adapter was trained on random weights, which follow from the seed
    section = path.partition(".")[0]
    component = getattr(run, section) if section in COMPONENTS else None
    return on_resume(path, type(component.config) if component is not None else None)


def _follows(run: RunConfig, kind: str) -> bool:
    """Whether the rates or the end of a run depend on keys of a class (EVALUATION, EVALUATION_TIME, LOGGING)."""
    stopping = run.early_stopping
    by_training = stopping is not None and stopping.monitor in TRAINING_METRICS
    if kind == LOGGING:
        return by_training
    if kind == EVALUATION_TIME and by_training and not stopping.check_on_train_epoch_end:
        return True
    plateau = run.hyper.lr_scheduler_type in PLATEAUS and run.schedule.monitor not in TRAINING_LOSS
    return plateau or (stopping is not None and not by_training)


# ---- rates ----


def _rates(run: RunConfig, changes: dict[str, Change], outcome: ResumeChanges) -> None:
    """Apply a changed learning rate or weight decay like resume_lr and resume_weight_decay."""
    for key, explicit in (("learning_rate", "resume_lr"), ("weight_decay", "resume_weight_decay")):
        change, stated = changes.get(key), getattr(run.process, explicit)
        if stated is not None and explicit in changes:
            outcome.apply(changes[explicit], f"{changes[explicit].now}, from here on")
        if change is None:
            continue
        if key == "learning_rate" and ignores_learning_rate(run):
            outcome.problems.append(
                f"{change.now} (it was {change.was}) has no effect: lr_scheduler_type "
                f"{run.hyper.lr_scheduler_type} has all its rates from its own options; change scheduler.max_lr"
            )
            continue
        if stated is not None and stated != change.after:
            outcome.problems.append(
                f"{change.now} (it was {change.was}) and `{explicit}: {stated:g}`{run.place(explicit)} both change it "
                "on resume; keep one"
            )
            continue
        outcome.apply(change, f"{explicit} {change.after:g}: {change.now}, was {change.was}")
        outcome.optimizer_changed = True


# ---- batch ----


def _batches(run: RunConfig, point: ResumePoint) -> tuple[tuple[int, int, int], tuple[int, int, int]] | None:
    """Return (batch per device, accumulated batches, processes) of the checkpoint's run and of this one."""
    before = point.batch
    if before is None:
        return None
    after = (run.hyper.per_device_train_batch_size, run.trainer.get(ACCUMULATED, 1), launched_processes())
    return before, (before[0], *after[1:]) if run.process.tune_batch_size else after  # the size that was found stays


def _batch(run: RunConfig, outcome: ResumeChanges) -> None:
    """Allow other batches per device, accumulation and processes if their product stays; else refuse or record."""
    point, batches = outcome.point, _batches(run, outcome.point)
    if batches is None or batches[0] == batches[1] or point.is_finished(_expected_steps(run, point)):
        return
    before, after = batches
    total, new = math.prod(before), math.prod(after)
    was, now = batch_line(*before), batch_line(*after)
    name, places = point.folder.name, {key: run.place(key) for key in (PER_DEVICE, ACCUMULATED, GLOBAL)}
    differ = [
        f"`{key}: {new}`{places[key] or ' (default)'}"
        for key, old, new in zip((PER_DEVICE, ACCUMULATED), before, after, strict=False)
        if old != new
    ] or [f"{after[2]} process{'es' * (after[2] > 1)}"]
    change = Change("batch", was, now, name, next(filter(None, places.values()), ""))
    statement = f"{' and '.join(differ)}: a batch of {now}, and {name} was trained with {was}"
    if total == new:
        outcome.apply(change, f"batch {now}, {name}'s was {was}: the same {total} samples a step, in the same order")
        return
    reason = f"a step was of {total} samples and would be of {new}"
    remedy = f"set global_batch_size {total}"
    remedy += f" (with a number of processes that divides it, not {after[2]})" if total % after[2] else ""
    if run.hyper.max_steps <= 0 and not run.is_endless:
        outcome.problems.append(
            f"{statement}: {reason}, and the length in epochs would be another "
            f"number of steps; {remedy}, or say the length as max_steps"
        )
    elif not outcome.refuse_unless_allowed(run, f"{statement}: {reason}", remedy):
        outcome.apply(change, f"changed on resume: batch {now}, was {was}")


# ---- length ----


def _length(run: RunConfig, changes: dict[str, Change], outcome: ResumeChanges, total: int | None) -> None:
    """Record another number of steps; refuse fewer than were done."""
    point = outcome.point
    after = _expected_steps(run, point) if total is None or run.is_endless else total
    cause = _cause_of_length(run, changes, point, after)
    if cause is None or after is None or after == point.total_steps:
        return
    change, setting = cause
    was, now = (f"{steps:,} steps" if steps < ENDLESS else "no end" for steps in (point.total_steps, after))
    choice, key = run.hyper.resume_schedule, f"`resume_schedule: rebase`{run.place('resume_schedule')}"
    if after < point.step:
        outcome.problems.append(
            f"{setting}: {point.folder.name} is past {now}; name an earlier checkpoint, or more steps"
        )
    elif after > point.step and point.is_weights_only:
        outcome.problems.append(f"{setting}: {point.folder.name} {MODEL_ALONE}, so no step can follow it; {NEW_RUN}")
    elif choice == "rebase" and "no end" in (was, now):
        outcome.problems.append(
            f"{key} with {setting}: without an end the schedule cannot be stretched; choose keep, or give max_steps"
        )
    else:
        outcome.length_setting = setting
        course = {"keep": ", then the learning rate stays", "rebase": ", stretched over the remaining steps"}
        schedule = f"; the schedule continues as planned{course[choice]}" if choice else ""
        outcome.apply(change, f"length: {setting}: {now} instead of {was}{schedule}")
        for moved in _shares_of_the_length(run, point.run):
            statement = f"{setting} moves {moved}"
            if not outcome.refuse_unless_allowed(run, statement, "set it back"):
                outcome.lines.append(f"changed on resume: {statement}")


def _expected_steps(run: RunConfig, point: ResumePoint) -> int | float | None:
    """Return the steps of the run, if its epochs are as long as the checkpoint's; None: not known."""
    if run.hyper.max_steps > 0:
        return run.hyper.max_steps
    if run.is_endless:
        return math.inf
    per_epoch = point.steps_per_epoch
    return None if per_epoch is None else math.ceil(run.hyper.num_train_epochs * per_epoch)


def _cause_of_length(
    run: RunConfig, changes: dict[str, Change], point: ResumePoint, after: float | None
) -> tuple[Change, str] | None:
    """Return the change that gives the run another length, and how error lines write it; None: there is none."""
    names = ["max_steps", "num_train_epochs"] if run.hyper.max_steps <= 0 else ["max_steps"]
    names += ["num_train_epochs"] if point.run.hyper.max_steps <= 0 else []
    if changed := [changes[name] for name in dict.fromkeys(names) if name in changes]:
        change = next((change for change in changed if change.after_place), changed[0])
        return change, change.now
    batches = _batches(run, point)
    has_another_batch = batches is not None and math.prod(batches[0]) != math.prod(batches[1])  # has its own rule
    if run.hyper.max_steps > 0 or run.is_endless or has_another_batch:
        return None
    place = run.place("num_train_epochs")
    epochs = f"`num_train_epochs: {run.hyper.num_train_epochs:g}`{place or ' (default)'}"
    change = next((change for path, change in changes.items() if path.partition(".")[0] in OF_AN_EPOCH), None)
    if change is not None:
        return change, f"{change.now} with {epochs}"
    return Change("length", point.total_steps, after, point.folder.name, place), f"{epochs} with the data as it is now"


def _shares_of_the_length(run: RunConfig, earlier: RunConfig) -> list[str]:
    """Return what depends on a share of all steps and changes the trajectory."""
    settings = settings_of(run)
    moved = []
    if getattr(getattr(run.dataset, "config", None), "sampling_probs_final", None):
        moved.append("where dataset.sampling_probs_final is reached")
    if 0 < (settings["eval_steps"] or 0) < 1 and (_follows(run, EVALUATION_TIME) or _follows(earlier, EVALUATION_TIME)):
        moved.append(f"the evaluations (eval_steps {settings['eval_steps']:g} is a share of all steps)")
    return moved


# ---- what `resume_context` and `resume_token_corruption` change in the network ----


def resized_context(run: RunConfig, network: Any, dims: Mapping[str, int], point: ResumePoint) -> list[str]:
    """Let a network that was built for the data's windows read longer ones than the checkpoint's; returns lines.

    Raises:
        ValueError: the windows are longer without `resume_context`, or do not fit it.
    """
    wanted, place, length = run.process.resume_context, run.place("resume_context"), dims.get("context")
    if not hasattr(network, "resize_context"):
        if wanted is not None:
            raise ValueError(f"`resume_context`{place}: model {run.model.name} cannot be resized; leave it out")
        return []
    shape, before = [dims["channels"], length], safe_read.read_json(point.folder / "config.json")["context"]
    if wanted is None:
        if before != length:
            raise ValueError(
                f"{point.folder.name} reads windows of {before} time steps, the data has {length}; set resume_context: "
                f"{{input_shape: {shape}}}, or dataset.window back"
            )
        return []
    if wanted.input_shape not in (None, shape):
        raise ValueError(
            f"`resume_context.input_shape: {wanted.input_shape}`{place}: the data has {shape}, channels and "
            "time steps; change it or dataset.window"
        )
    network.config.context = before
    try:
        network.resize_context(length, wanted.rope_theta, wanted.max_position_embeddings)
    except ValueError as error:
        raise ValueError(f"`resume_context`{place}: {error}") from None
    rotation = f", rope_theta {wanted.rope_theta:g}" if wanted.rope_theta else ""
    return [f"resume_context: windows of {length} time steps, {point.folder.name} had {before}{rotation}"]


def kept_corruption(run: RunConfig, network: Any, point: ResumePoint) -> list[str]:
    """Let the token corruption be that of the checkpoint, or as `resume_token_corruption` says; returns lines.

    Raises:
        ValueError: the network has none, or the settings are wrong.
    """
    wanted, place = run.process.resume_token_corruption, run.place("resume_token_corruption")
    if not hasattr(network, "set_token_corruption"):
        if wanted is not None:
            raise ValueError(f"`resume_token_corruption`{place}: model {run.model.name} has none; leave it out")
        return []
    before, configured = (settings.model.config.token_corruption for settings in (point.run, run))
    before, configured = before and asdict(before), configured and asdict(configured)
    values = wanted if isinstance(wanted, dict) else {None: before, True: configured, False: None}[wanted]
    try:
        network.set_token_corruption(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`resume_token_corruption`{place}: {error}") from None
    now, model = network.config.token_corruption, run.tree.value["model"].value
    model["token_corruption"] = node_of(now, model["token_corruption"].origin)  # for run.yaml, and the next resume
    if wanted is None and configured != before:
        return [
            f"model.token_corruption: {configured or 'none'} is not applied on resume, {before or 'none'} stays; "
            "resume_token_corruption: true takes it"
        ]
    return [] if now == before else [f"token corruption from here on: {now or 'none'}, was {before or 'none'}"]
