"""What may change on resume: find every difference to the checkpoint's run, classify it, and refuse or apply it.

Harmless differences are applied. Those that change the trajectory are refused, unless `resume_changed: allow`; then
they are applied and recorded. What does not fit the checkpoint is always refused. Rates, length and batch have their
own rules. All refusals are reported together, with both values and their origins.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loader.resolve.derived import TRAINING_LOSS, TRAINING_METRICS, ignores_learning_rate
from loader.resolve.global_batch_size import ACCUMULATED, GLOBAL, PER_DEVICE, batch_line, launched_processes
from loader.resolve.precedence import PLATEAUS
from loader.resolve.resolver import read_saved
from loader.resolve.run_config import RunConfig
from loader.resume.change_policy import class_of_optimizer, class_of_option
from loader.resume.checkpoint_info import Facts
from loader.resume.config_diff import Change, differences, settings_of
from loader.resume.schedule_length import check_length, depends_on_length, the_choice, total_steps
from loader.schema.keys import on_resume
from loader.schema.sections import COMPONENTS
from storage.config_keys import EVALUATION, EVALUATION_TIME, HARMLESS, IMPOSSIBLE, LOGGING, TRAJECTORY

NEW_RUN = "begin a new run from its weights (model_name_or_path with is_pretrained or load_pretrain)"
HISTORY = "resumed.json"
# Keys that decide how many steps an epoch has; and keys and sections that may, which only the data says.
OF_AN_EPOCH = ("limit_train_batches", "dataloader_drop_last")
PERHAPS_OF_AN_EPOCH = ("dataset", "shuffle", "episode_first", "skip_mirrored_data", "accelerator_config")


@dataclass
class ResumeChanges:
    """How a run differs from the one that wrote a checkpoint.

    Attributes:
        problems: Why the run cannot resume, one line each; empty if it can.
        lines: What to print if it resumes: each change that matters.
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


def resume_changes(run: RunConfig, checkpoint: Path, total: int | None = None) -> ResumeChanges:
    """Compares a run with the one that wrote a (whole) checkpoint.

    Args:
        total: Steps of the run with the data that it has now; None: the data has not been looked at.
    """
    outcome = ResumeChanges(read_saved(checkpoint / "run.yaml"), Facts(checkpoint))
    changes = differences(run, outcome.earlier, checkpoint / "run.yaml")
    for change in changes:
        _judge(run, change, outcome)
    by_path = {each.path: each for each in changes}
    _rates(run, by_path, outcome)
    _batch(run, outcome)
    _length(run, by_path, outcome, total)
    return outcome


def _judge(run: RunConfig, change: Change, outcome: ResumeChanges) -> None:
    kind, name = class_of_change(run, change, outcome.earlier), outcome.facts.folder.name
    if kind in (EVALUATION, EVALUATION_TIME, LOGGING):
        kind = TRAJECTORY if _follows(run, kind) or _follows(outcome.earlier, kind) else HARMLESS
    outcome.best_changed |= change.path in ("metric_for_best_model", "greater_is_better")
    if kind == IMPOSSIBLE:
        outcome.problems.append(
            f"{change.now}, and {name} was trained with {change.was}: what it holds does not fit; set it back, or "
            f"{NEW_RUN}"
        )
    elif kind == TRAJECTORY and run.hyper.resume_changed == "refuse":
        outcome.problems.append(
            f"{change.now}, and {name} was trained with {change.was}: it changes where the training goes; set it back, "
            "or allow it with --resume_changed allow"
        )
    elif kind == TRAJECTORY:
        outcome.apply(change, f"changed on resume: {change.now}, was {change.was}")
        top = change.path.split(".")[0]
        outcome.optimizer_changed |= top in (
            "optim",
            "optimizer",
            "adam_beta1",
            "adam_beta2",
            "adam_epsilon",
            "lora_lr",
        )
        outcome.optimizer_changed |= top.startswith("param_groups")
        outcome.schedule_changed |= top == "lr_scheduler_type"


def class_of_change(run: RunConfig, change: Change, earlier: RunConfig) -> str:
    """Classify what a change means for the resumed run, see `on_resume` in `storage/config_keys.py`."""
    path = change.path
    if path == "optim":
        return class_of_optimizer(change.before, change.after)
    if path.startswith("optimizer."):
        return class_of_option(change.before, change.after, path.partition(".")[2])
    if path == "lora_lr" and None in (change.before, change.after):
        return IMPOSSIBLE  # a group of its own, or none
    if path == "seed" and earlier.process.lora_enable and not earlier.process.model_name_or_path:
        return IMPOSSIBLE  # the adapter was trained on random weights, which follow from the seed
    section = path.partition(".")[0]
    component = getattr(run, section) if section in COMPONENTS else None
    return on_resume(path, type(component.config) if component is not None else None)


def _follows(run: RunConfig, kind: str) -> bool:
    """Whether keys of a class (EVALUATION, EVALUATION_TIME, LOGGING) decide on the rates or the end of a run."""
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
    """A learning rate or weight decay that is another now does what resume_lr and resume_weight_decay say."""
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


def _batch(run: RunConfig, outcome: ResumeChanges) -> None:
    """Batch per device, accumulation and processes: free where their product stays."""
    facts = outcome.facts
    before = facts.batch
    after = (run.hyper.per_device_train_batch_size, run.trainer.get(ACCUMULATED, 1), launched_processes())
    if before is None:
        return
    if run.process.tune_batch_size:  # a resumed run keeps the size that was found
        after = (before[0], *after[1:])
    if before == after or facts.step >= (total_steps(run, facts) or facts.total):  # nothing is left to train
        return
    total, new = math.prod(before), math.prod(after)
    was, now = batch_line(*before), batch_line(*after)
    name, places = facts.folder.name, {key: run.place(key) for key in (PER_DEVICE, ACCUMULATED, GLOBAL)}
    differ = [
        f"`{key}: {new}`{places[key] or ' (default)'}"
        for key, old, new in zip((PER_DEVICE, ACCUMULATED), before, after, strict=False)
        if old != new
    ] or [f"{after[2]} process{'es' * (after[2] > 1)}"]
    change = Change("batch", was, now, name, next(filter(None, places.values()), ""))
    statement = f"{' and '.join(differ)}: a batch of {now}, and {name} was trained with {was}"
    if total == new and not (before[0] != after[0] and draws_by_batch(run)):
        outcome.apply(change, f"batch {now}, {name}'s was {was}: the same {total} samples a step, in the same order")
        return
    if total == new:
        reason = "with several data sets each batch is of one of them, so its size decides which"
        remedy = f"set {PER_DEVICE} {before[0]}"
    else:
        reason = f"a step was of {total} samples and would be of {new}"
        remedy = f"set global_batch_size {total}" + _fitting(total, after)
    if run.hyper.max_steps <= 0 and total != new and not run.is_endless:
        outcome.problems.append(
            f"{statement}: {reason}, and the length in epochs would be another "
            f"number of steps; {remedy}, or say the length as max_steps"
        )
    elif run.hyper.resume_changed == "refuse":
        outcome.problems.append(f"{statement}: {reason}; {remedy}, or allow it with --resume_changed allow")
    else:
        outcome.apply(change, f"changed on resume: batch {now}, was {was}")


def _fitting(total: int, after: tuple[int, int, int]) -> str:
    """What the wanted size means on the processes of now."""
    size, _, processes = after
    if total % processes:
        return f" (it needs a number of processes that divides it, not {processes})"
    share = total // processes
    fits = size if share % size == 0 else next(index for index in range(min(size, share), 0, -1) if share % index == 0)
    return f" ({PER_DEVICE} {fits}, {ACCUMULATED} {share // fits})"


def draws_by_batch(run: RunConfig) -> bool:
    """Whether the data chooses for each batch which data set it comes from."""
    asked = getattr(run.dataset.module, "draws_by_batch", None) if run.dataset is not None else None
    return bool(asked and asked(run.dataset.config))


# ---- length ----


def _length(run: RunConfig, changes: dict[str, Change], outcome: ResumeChanges, total: int | None) -> None:
    names = ["max_steps", "num_train_epochs"] if run.hyper.max_steps <= 0 else ["max_steps"]
    names += ["num_train_epochs"] if outcome.earlier.hyper.max_steps <= 0 else []
    changed = [changes[name] for name in dict.fromkeys(names) if name in changes]
    facts = outcome.facts
    after = total_steps(run, facts) if total is None or run.is_endless else total
    if changed:
        change = next((each for each in changed if each.after_place), changed[0])
        setting = change.now
    elif run.hyper.max_steps > 0 or run.is_endless or _has_another_batch(run, facts):
        return
    else:
        change, setting = _change_of_epochs(run, changes, facts, after)
        if total is None:
            _length_to_come(run, change, setting, outcome)
            return
    problems, line = check_length(run, outcome, facts.folder.name, setting, after)
    outcome.problems += problems
    if not line or problems:
        return
    outcome.length_changed = True
    outcome.apply(change, line)
    for moved in _shares_of_the_length(run, outcome.earlier):
        statement = f"{setting} moves {moved}"
        if run.hyper.resume_changed == "refuse":
            outcome.problems.append(f"{statement}; set it back, or allow it with --resume_changed allow")
        else:
            outcome.lines.append(f"changed on resume: {statement}")


def _change_of_epochs(
    run: RunConfig, changes: dict[str, Change], facts: Facts, after: float | None
) -> tuple[Change, str]:
    """What makes another length of a run whose number of epochs is the same, and how error lines write it."""
    keys = (*OF_AN_EPOCH, *PERHAPS_OF_AN_EPOCH)
    change = next((each for path, each in changes.items() if path.partition(".")[0] in keys), None)
    place = run.place("num_train_epochs")
    epochs = f"`num_train_epochs: {run.hyper.num_train_epochs:g}`{place or ' (default)'}"
    if change is not None:
        return change, f"{change.now} with {epochs}"
    change = Change("length", facts.total, after, facts.folder.name, place)
    return change, f"{epochs} with the data as it is now"


def _length_to_come(run: RunConfig, change: Change, setting: str, outcome: ResumeChanges) -> None:
    """How long epochs are now, only the data says; whether that will matter can be said before."""
    matters = depends_on_length(run) and not outcome.schedule_changed and run.hyper.resume_schedule is None
    if change.path in OF_AN_EPOCH and matters:
        outcome.problems.append(
            f"{setting} may make another number of steps than {outcome.facts.total:,}, {the_choice(run, outcome)}"
        )


def _has_another_batch(run: RunConfig, facts: Facts) -> bool:
    """Whether a step takes other samples than before, which has a rule of its own."""
    now = (run.hyper.per_device_train_batch_size, run.trainer.get(ACCUMULATED, 1), launched_processes())
    return facts.batch is not None and not run.process.tune_batch_size and math.prod(facts.batch) != math.prod(now)


def _shares_of_the_length(run: RunConfig, earlier: RunConfig) -> list[str]:
    """What stands at a share of all steps, and decides where the training goes."""
    settings = settings_of(run)
    moved = []
    if getattr(getattr(run.dataset, "config", None), "sampling_probs_final", None):
        moved.append("where dataset.sampling_probs_final is reached")
    if 0 < (settings["eval_steps"] or 0) < 1 and (_follows(run, EVALUATION_TIME) or _follows(earlier, EVALUATION_TIME)):
        moved.append(f"the evaluations (eval_steps {settings['eval_steps']:g} is a share of all steps)")
    return moved
