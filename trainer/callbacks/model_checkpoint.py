"""Which checkpoints a run saves, which it keeps, and how the others are deleted."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm
from transformers import TrainerCallback

from storage.atomic import remove, write_json
from storage.checkpoints import checkpoints, step_of
from trainer.callbacks.epochs import epochs_begun, is_whole
from trainer.callbacks.metric_names import LatestMetrics, find_metric, is_evaluation, metric_or_error, normal_form

STATE_KEY = "kept checkpoints"


class Settings(Protocol):
    """The section `checkpointing`."""

    monitor: str | Sequence[str] | None
    mode: str | Sequence[str] | Mapping[str, str]  # min or max: for all, in the monitors' order, or by monitor
    save_top_k: int  # best checkpoints kept for each monitor; -1: all, 0: none
    save_last: bool
    every_n_epochs: int | None  # 0 or None: no periodic saves


@dataclass
class _Nothing:
    """A training file without the section."""

    monitor: None = None
    mode: str = "min"
    save_top_k: int = -1
    save_last: bool = False
    every_n_epochs: None = None


Best = list[tuple[float, int]]  # (value, step), the best first


class KeepCheckpoints(TrainerCallback):
    """Asks for checkpoints after evaluations and epochs, and deletes those that are no longer wanted.

    Saved are: after an evaluation, one whose value is among the best k of a monitor (k = -1: every one); the end of
    each n-th epoch; with `save_last` the end of the training; and whatever others ask for (`save_steps`, a signal).

    Kept are: the best k of each monitor, the newest, and what others asked for; with k = -1 all. One that is neither
    best nor newest any more is deleted, so that periodic saves do not pile up behind `save_top_k: 2`. Of all that is
    left, the oldest go when there are more than `save_total_limit`; never the newest, never one of the best k (k = -1:
    the best), nor transformers' `best_model_checkpoint`. One that was saved because the run was told to stop goes when
    the next is there. A value that is not finite is never best; of equal values the
    earlier stays. One counts as best once it is on the disk: until then, and if it never gets there, what it displaces
    stays. The newest that a run can go on from stays too: with `save_only_model` one that was saved when the run was
    told to stop. Checkpoints of another origin in the folder count for `save_total_limit` alone.

    `OUT/checkpoints.json` lists them; beside the checkpoints lie the links `best-checkpoint` (of the first monitor),
    `best-<metric>` for each, and with `save_last` `last-checkpoint`.

    What it knows is stored in each checkpoint's `trainer_state.json` (why not by `ExportableState`: see EarlyStopping).
    Must come after EarlyStopping and the callbacks that ask for evaluations at an epoch's end.

    Args:
        settings: None: nothing is saved by itself, and `save_total_limit` alone says what is deleted.
        checkpoint_dir: Holds the `checkpoint-N`.
        delete: Takes a folder's name away at once, and its content then or later.

    Raises:
        ValueError: `mode` does not fit `monitor`, `save_top_k` has no monitor; a metric is not there when training
            goes on.
    """

    def __init__(
        self,
        settings: Settings | None,
        checkpoint_dir: Path,
        save_total_limit: int | None = None,
        delete: Callable[[Path], None] = remove,
    ):
        self.settings, self.folder, self.limit = settings or _Nothing(), Path(checkpoint_dir), save_total_limit
        self.delete = delete
        self.modes = monitor_modes(self.settings)
        if self.settings.save_top_k > 0 and not self.modes:
            raise ValueError(
                f"`checkpointing.save_top_k: {self.settings.save_top_k}` needs `checkpointing.monitor` to say what is "
                "best; to keep the newest few, set save_total_limit"
            )
        self.latest, self.can_link, self.output_dir = LatestMetrics(), True, self.folder
        self._forget()

    def _forget(self) -> None:
        self.best: dict[str, Best] = {name: [] for name in self.modes}
        self.metrics: dict[str, str] = {}  # monitor -> the logged key that it means
        self.checked = dict.fromkeys(self.modes, 0)  # step of the last value
        self.saved: list[int] = []  # steps of the checkpoints that exist, oldest first
        self.others: list[int] = []  # those of them that others asked for
        self.stopgaps: list[int] = []  # those of them that nobody would have asked for, had the run not been stopped
        self.resumable: list[int] = []  # those of them that hold more than the model
        self.under_way: int | None = None  # that of them which is still being written
        self.missing: set[str] = set()
        self.ours_at = self.others_at = self.held_at = -1  # the step at which a save was asked for, or put off

    # ---- what is saved ----

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._forget()
        self.output_dir = Path(args.output_dir)
        self.latest.begin(state.log_history)
        self._restore(state.stateful_callbacks.get(STATE_KEY), state)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for monitor in sorted(self.missing):  # every evaluation set has had its turn by now
            metric_or_error(monitor, self.latest.values, "checkpointing.monitor")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.latest.add(logs or {})

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if control.should_save:
            self._note_others(state, control)
            self._store(state)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._note_others(state, control)
        cut_short = control.should_training_stop and not is_whole(state.epoch)
        period, epochs = self.settings.every_n_epochs, epochs_begun(state.epoch)
        periodic = bool(period) and epochs % period == 0 and not cut_short
        last = self.settings.save_last and control.should_training_stop
        if periodic or last:
            self.ours_at = state.global_step
        is_saved = self.saved[-1:] == [state.global_step] and not control.should_evaluate
        is_saved = is_saved and state.global_step not in self.stopgaps
        if (periodic or last or self.held_at == state.global_step) and not is_saved:
            control.should_save = True
        self._store(state)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        """Called once for each evaluation, with the metrics of all its sets."""
        self._note_others(state, control)
        self.latest.add(metrics)
        for monitor in self.modes:
            name = find_metric(monitor, self.latest.values)
            if name is None:
                self.missing |= set() if self.latest.may_still_come(monitor) else {monitor}
            elif name in metrics or not is_evaluation(name):
                self.missing.discard(monitor)
                if self._enters(monitor, name, state.global_step):
                    control.should_save, self.ours_at = True, state.global_step
        if self.settings.save_last and control.should_training_stop:  # an early stop: no epoch's end comes any more
            control.should_save, self.ours_at = True, state.global_step
        self._store(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        unseen = [name for name in self.modes if name not in self.metrics and self.settings.save_top_k]
        if unseen and state.is_world_process_zero:
            tqdm.write(
                f"no best checkpoint: {', '.join(unseen)} was not evaluated with a finite value", file=sys.stderr
            )

    def _enters(self, monitor: str, name: str, step: int) -> bool:
        """Whether the newest value is among the best k now. A step counts once, the untrained model never."""
        value, size = self.latest.values[name], self.settings.save_top_k
        if self.checked[monitor] == step or not math.isfinite(value):
            return False
        self.checked[monitor], self.metrics[monitor] = step, name
        sign = 1 if self.modes[monitor] == "min" else -1
        ranked = sorted([*self.best[monitor], (value, step)], key=lambda entry: (sign * entry[0], entry[1]))
        self.best[monitor] = ranked
        self._drop_displaced()
        return (value, step) in (ranked if size < 0 else ranked[:size])

    def _drop_displaced(self) -> None:
        """A value stays while it is among the best k of all, or of those whose checkpoints are on the disk."""
        size = self.settings.save_top_k
        for name, entries in self.best.items() if size >= 0 else ():
            stay = {*entries[:size], *self._written(entries)[:size]}
            self.best[name] = [entry for entry in entries if entry in stay]

    def _written(self, entries: Best) -> Best:
        return [(value, step) for value, step in entries if step in self.saved and step != self.under_way]

    def _note_others(self, state: Any, control: Any) -> None:
        if control.should_save and self.ours_at != state.global_step:
            self.others_at = state.global_step

    # ---- what is kept ----

    def put_off(self, state: Any) -> None:
        """A save at an epoch's last step waits for the epoch's end, when its evaluation and log line have come too."""
        self.held_at = state.global_step
        if self.ours_at != state.global_step:  # a callback that came later has asked for it
            self.others_at = state.global_step
        self._store(state)

    def requested(self, state: Any, is_stopgap: bool = False, is_resumable: bool = True) -> None:
        """A save has begun: from now on that step needs no second one."""
        step = state.global_step
        self.stopgaps = sorted({*self.stopgaps, step} if is_stopgap else {*self.stopgaps} - {step})
        self.resumable = sorted({*self.resumable, step} if is_resumable else {*self.resumable} - {step})
        self._count_saved(step)
        self._store(state)
        self.under_way = step

    def failed(self, state: Any) -> None:
        """It came to nothing."""
        step, self.under_way = state.global_step, None
        self._forget_steps({step})
        self.best = {name: [entry for entry in entries if entry[1] != step] for name, entries in self.best.items()}
        self._store(state)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.after_save(state)

    def after_save(self, state: Any) -> None:
        """Lists and links the checkpoint that has just been written, and deletes those it makes superfluous."""
        step, self.under_way = state.global_step, None
        if step not in self.saved:  # told late, when other steps were asked for, it has been counted
            self._count_saved(step)
        self._drop_displaced()
        if state.is_world_process_zero:
            gone = self._tidy(step, os.path.basename(state.best_model_checkpoint or ""))
            self._forget_steps({step_of(name) for name in gone})
        self._store(state)

    def _forget_steps(self, gone: Collection[int]) -> None:
        for steps in (self.saved, self.others, self.stopgaps, self.resumable):
            steps[:] = [step for step in steps if step not in gone]

    def _count_saved(self, step: int) -> None:
        self.saved = sorted({*self.saved, step})
        if step not in self.stopgaps and (self.others_at == step or self.ours_at != step):
            self.others = sorted({*self.others, step})

    def protected(self, newest: int) -> set[str]:
        """Names of the checkpoints that no limit may delete: the newest, the newest to go on from, and the best."""
        kept = {newest, *self.resumable[-1:]}
        for entries in self.best.values():
            best = entries if self.settings.save_top_k >= 0 else [*entries[:1], *self._written(entries)[:1]]
            kept |= {step for _, step in best}
        return {f"checkpoint-{step}" for step in kept}

    def obsolete(self, newest: int) -> list[str]:
        """Names of the checkpoints that this callback had saved and has no more use for, oldest first."""
        kept = self.protected(newest) | {f"checkpoint-{step}" for step in self.others}
        ours = self.stopgaps if self.settings.save_top_k < 0 else self.saved
        return [name for step in ours if (name := f"checkpoint-{step}") not in kept]

    def _tidy(self, step: int, also: str) -> list[str]:
        """The list and the links first: a process killed before the deletions leaves nothing that points nowhere."""
        unwanted = [name for name in self.obsolete(step) if name != also]
        doomed = overdue(self.folder, self.limit, self.protected(step) | {also}, set(unwanted))
        gone = [*unwanted, *doomed]
        try:
            write_json(self.output_dir / "checkpoints.json", self.listing(step, gone))
        except OSError as error:
            tqdm.write(f"checkpoints.json in {self.output_dir} could not be written: {error.strerror}", file=sys.stderr)
        self._link_all(step, gone)
        return [name for name in gone if self._removed(name)]

    def _removed(self, name: str) -> bool:
        """Whether a checkpoint is gone; what cannot be deleted is no reason to end a training."""
        try:
            self.delete(self.folder / name)
        except OSError as error:
            tqdm.write(f"{self.folder / name} could not be deleted: {error.strerror}", file=sys.stderr)
            return False
        return True

    def listing(self, newest: int, gone: Collection[str] = ()) -> dict[str, Any]:
        """What `checkpoints.json` says, without the checkpoints that are `gone`."""
        monitors = {}
        for monitor, entries in self.best.items():
            there = [(value, step) for value, step in entries if self._exists(step, gone)]
            there = there[: self.settings.save_top_k] if self.settings.save_top_k >= 0 else there
            monitors[self.metrics.get(monitor, monitor)] = {
                "mode": self.modes[monitor],
                "best": [{"checkpoint": f"checkpoint-{step}", "step": step, "value": value} for value, step in there],
            }
        folder = os.path.relpath(self.folder, self.output_dir)
        return {"folder": folder, "monitors": monitors, "last": {"checkpoint": f"checkpoint-{newest}", "step": newest}}

    def _exists(self, step: int, gone: Collection[str] = ()) -> bool:
        return f"checkpoint-{step}" not in gone and (self.folder / f"checkpoint-{step}").is_dir()

    def _link_all(self, newest: int, gone: Collection[str]) -> None:
        first = next(iter(self.modes), None)
        for monitor, entries in self.best.items():
            step = next((step for _, step in entries if self._exists(step, gone)), None)
            if step is not None:
                self._link("best-" + re.sub(r"[^\w.-]", "_", self.metrics[monitor]), step)
                if monitor == first:
                    self._link("best-checkpoint", step)
        if self.settings.save_last:
            self._link("last-checkpoint", newest)

    def _link(self, name: str, step: int) -> None:
        """A relative link, replaced in one rename; where the file system has none, one line says so."""
        if not self.can_link:
            return
        temporary = self.folder / f".{name}.{os.getpid()}.tmp"
        try:
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(f"checkpoint-{step}", target_is_directory=True)
            os.replace(temporary, self.folder / name)
        except (OSError, NotImplementedError) as error:
            self.can_link = False
            temporary.unlink(missing_ok=True)
            line = f"no link {name} in {self.folder} ({error}); checkpoints.json says which checkpoint is which"
            tqdm.write(line, file=sys.stderr)

    # ---- state ----

    def _store(self, state: Any) -> None:
        monitors = {
            normal_form(name): {"mode": mode, "best": self.best[name], "checked": self.checked[name]}
            | {"metric": self.metrics.get(name)}
            for name, mode in self.modes.items()
        }
        steps = {"saved": self.saved, "others": self.others, "stopgaps": self.stopgaps}
        steps |= {"resumable": self.resumable}
        steps |= {"ours_at": self.ours_at, "others_at": self.others_at, "held_at": self.held_at}
        state.stateful_callbacks[STATE_KEY] = {"monitors": monitors, **steps}

    def _restore(self, stored: Mapping[str, Any] | None, state: Any) -> None:
        if stored:
            # Written before the deletions that the checkpoint's own save brought.
            if stored.get("resumable") is None:  # which older versions did not note
                stored = {**stored, "resumable": [state.global_step]}
            self.saved, self.others, self.stopgaps, self.resumable = (
                [step for step in stored[name] if self._exists(step)]
                for name in ("saved", "others", "stopgaps", "resumable")
            )
            self.ours_at, self.others_at, self.held_at = (stored[name] for name in ("ours_at", "others_at", "held_at"))
            self._count_saved(state.global_step)  # a checkpoint's own file was written before it was there
        for name, mode in self.modes.items():
            entry = stored["monitors"].get(normal_form(name)) if stored else None
            if entry and entry["mode"] == mode:
                self.best[name] = [(value, step) for value, step in entry["best"]]
                self.checked[name] = entry["checked"]
                self.metrics |= {name: entry["metric"]} if entry["metric"] else {}
            elif state.global_step and state.is_world_process_zero:
                line = f"checkpointing: {name} ({mode}) counts from step {state.global_step} on"
                tqdm.write(f"{line}: the checkpoint has no values of it", file=sys.stderr)
        self._drop_displaced()
        self._store(state)


def monitor_modes(settings: Settings) -> dict[str, str]:
    """Each monitor with its mode.

    Raises:
        ValueError: `mode` names no monitor or too few of them, or is neither min nor max.
    """
    monitors = [settings.monitor] if isinstance(settings.monitor, str) else list(settings.monitor or [])
    mode = settings.mode
    if isinstance(mode, Mapping):
        different = sorted(set(mode) ^ set(monitors))
        if different:
            raise ValueError(
                f"`checkpointing.mode` and `checkpointing.monitor` must name the same; `{different[0]}` is in one only"
            )
        modes = dict(mode)
    elif isinstance(mode, str):
        modes = dict.fromkeys(monitors, mode)
    else:
        if len(mode) != len(monitors):
            raise ValueError(f"`checkpointing.mode` has {len(mode)} entries for {len(monitors)} monitors")
        modes = dict(zip(monitors, mode, strict=True))
    wrong = next((each for each in modes.values() if each not in ("min", "max")), None)
    if wrong is not None:
        raise ValueError(f"`checkpointing.mode: {wrong}` must be min or max")
    return {name: modes[name] for name in monitors}


# ---- deleting ----


def overdue(folder: Path, limit: int | None, protected: Collection[str], without: Collection[str] = ()) -> list[str]:
    """The checkpoints that are too many for `limit`, the oldest by step; those in `without` are taken as deleted.

    Never the newest nor a protected one, even if more than `limit` stay. None or 0: there is no limit.
    """
    names = [path.name for path in checkpoints(folder) if path.name not in without]
    excess = len(names) - limit if limit else 0
    candidates = [name for name in names[:-1] if name not in protected]
    return candidates[: max(excess, 0)]
