"""Save checkpoints after good evaluations and at epoch ends, and delete those that are no longer needed."""

from __future__ import annotations

import contextlib
import math
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

from storage.atomic import remove, write_json
from storage.checkpoints import checkpoints, step_of
from trainer.callbacks.checkpoint_policy import (
    PERIODIC,
    POLICY,
    PREEMPTION,
    REASONS,
    REQUESTED,
    SavedCheckpoint,
    protected_steps,
    ranked,
    steps_over_limit,
    superfluous_steps,
)
from trainer.callbacks.hooks import epochs_begun, is_whole
from trainer.callbacks.metric_names import (
    LatestMetrics,
    find_metric,
    is_evaluation,
    metric_or_error,
    normal_form,
    required_direction,
)
from trainer.settings import CheckpointingConfig

STATE_KEY = "model_checkpoint"  # in trainer_state.json
NEVER = -1  # a step that no run reaches


class ModelCheckpoint(TrainerCallback):
    """Requests checkpoints after evaluations and epochs, and deletes superfluous ones.

    Saved are: after an evaluation, a step whose value is among the best k of a monitor (k = -1: every step); the end of
    each n-th epoch; with `save_last` the end of training; and whatever others request (`save_steps`, a preemption).

    Kept are: the best k of each monitor, the newest, the newest resumable one, and what other callbacks requested; with
    k = -1 or without a monitor also the periodic ones (`save_steps`), with k = -1 all. If more than `save_total_limit`
    remain, the oldest are deleted, except the newest ones and the best k (k = -1: the best). A checkpoint that only a
    preemption saved goes when the next one is complete. NaN and infinity are never best; of equal values the earlier
    stays. A checkpoint displaces another one only when it is complete. Checkpoints of other runs in the folder only
    count for `save_total_limit`.

    `OUT/checkpoints.json` lists the checkpoints; beside them are the symlinks `best-checkpoint` (of the first monitor),
    `best-<metric>` for each monitor, and with `save_last` `last-checkpoint`.

    Its state is stored in each checkpoint's `trainer_state.json` (by hand, not as ExportableState: see EarlyStopping).
    It must come after EarlyStopping and after callbacks that request evaluations at an epoch's end.

    Args:
        settings: None: nothing is requested; only `save_total_limit` and preemptions lead to deletions.
        checkpoint_dir: Folder of the `checkpoint-N`.
        save_total_limit: None or 0: no limit.
        delete: Removes a folder's name at once, and its content then or later.
        directions: Of the data's metrics, for monitors without a mode.
    """

    def __init__(
        self,
        settings: CheckpointingConfig | None,
        checkpoint_dir: Path,
        save_total_limit: int | None = None,
        delete: Callable[[Path], None] = remove,
        directions: Mapping[str, str] | None = None,
    ):
        settings = settings or CheckpointingConfig(save_last=False, every_n_epochs=0)
        self.save_top_k = settings.save_top_k
        self.modes = {
            monitor: required_direction(monitor, mode, directions, "checkpointing")
            for monitor, mode in settings.modes.items()
        }
        self.save_last, self.every_n_epochs = settings.save_last, settings.every_n_epochs
        self.save_strategy = "no"  # of the training that runs
        self.limit, self.latest = save_total_limit, LatestMetrics()
        self.files = CheckpointFiles(Path(checkpoint_dir), delete)
        self._reset()

    def _reset(self) -> None:
        self.checkpoints: list[SavedCheckpoint] = []  # sorted by step
        self.scores: dict[str, tuple[int, float]] = {}  # monitor -> (step, value) of its last finite evaluation
        self.metrics: dict[str, str] = {}  # monitor -> the logged key that it stands for
        self.missing: set[str] = set()  # monitors that were not among the metrics of an evaluation
        # Steps at which a save was last requested by this callback or by others, or deferred to the epoch's end.
        self.requested_at = self.requested_by_others_at = self.deferred_at = NEVER

    # ---- events: what is saved ----

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._reset()
        self.save_strategy = getattr(args.save_strategy, "value", args.save_strategy)
        self.files.output_dir = Path(args.output_dir)
        self.latest.begin(state.log_history)
        self._restore(state.stateful_callbacks.get(STATE_KEY), state)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.latest.add(logs or {})

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._note_other_requests(state, control)
        step, is_last = state.global_step, control.should_training_stop
        is_cut_short = is_last and not is_whole(state.epoch)
        is_due = bool(self.every_n_epochs) and epochs_begun(state.epoch) % self.every_n_epochs == 0
        wanted = (is_due and not is_cut_short) or (self.save_last and is_last)
        if wanted:
            self.requested_at = step
        newest = self.checkpoints[-1] if self.checkpoints else None
        is_saved = newest is not None and newest.step == step and newest.reason != PREEMPTION
        if (wanted or self.deferred_at == step) and (control.should_evaluate or not is_saved):
            control.should_save = True
        self._store(state)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        """Called once per evaluation, with the metrics of all its sets."""
        self._note_other_requests(state, control)
        self.latest.add(metrics)
        is_among_best = False
        for monitor in self.modes:
            name = find_metric(monitor, self.latest.values)
            if name is None:
                self.missing |= set() if self.latest.may_still_come(monitor) else {monitor}
            elif name in metrics or not is_evaluation(name):
                self.missing.discard(monitor)
                is_among_best |= self._add_score(monitor, name, state.global_step)
        # After an early stop no epoch end follows that would save the last step.
        if is_among_best or (self.save_last and control.should_training_stop):
            control.should_save, self.requested_at = True, state.global_step
        self._store(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        unseen = [name for name in self.modes if name not in self.metrics and self.save_top_k]
        if unseen and state.is_world_process_zero:
            line = f"no best checkpoint: {', '.join(unseen)} was not evaluated with a finite value"
            tqdm.write(line, file=sys.stderr)
        if state.is_world_process_zero and not args.load_best_model_at_end:
            self._print_best(state)

    def _print_best(self, state: Any) -> None:
        """Name the best checkpoint of the first monitor, if the final model is another one."""
        for monitor in list(self.modes)[: bool(self.save_top_k)]:
            best = ranked(self.checkpoints, monitor, self.modes[monitor])
            if best and best[0].step != state.global_step:
                value = f"{self.metrics[monitor]} {best[0].scores[monitor]:.4g}"
                line = f"best: checkpoint-{best[0].step} ({value}); the final model is the last one, of step "
                line += f"{state.global_step}: load_best_model_at_end: true saves the best instead"
                tqdm.write(line, file=sys.stderr)

    def _add_score(self, monitor: str, name: str, step: int) -> bool:
        """Note a monitor's newest value; whether it is among the best k. A step counts once, step 0 never."""
        value = self.latest.values[name]
        if self.scores.get(monitor, (0, 0.0))[0] == step or not math.isfinite(value):
            return False
        self.scores[monitor], self.metrics[monitor] = (step, value), name
        others = [checkpoint for checkpoint in self.checkpoints if checkpoint.step != step]
        best = ranked([*others, SavedCheckpoint(step, scores={monitor: value})], monitor, self.modes[monitor])
        return step in [checkpoint.step for checkpoint in (best if self.save_top_k < 0 else best[: self.save_top_k])]

    def _note_other_requests(self, state: Any, control: Any) -> None:
        if control.should_save and self.requested_at != state.global_step:
            self.requested_by_others_at = state.global_step

    # ---- calls of the Trainer ----

    def check_monitors(self) -> None:
        """Check that the last evaluation had all monitors; called where training continues, after a save that was due.

        Raises:
            UnknownMetric: a monitor is not logged.
        """
        for monitor in sorted(self.missing):
            metric_or_error(monitor, self.latest.values, "checkpointing.monitor")

    def is_resumable(self, step: int) -> bool:
        """Whether training can continue from the checkpoint of a step."""
        return any(checkpoint.resumable for checkpoint in self.checkpoints if checkpoint.step == step)

    def defer_save(self, state: Any) -> None:
        """Postpone a save at an epoch's last step until the epoch's end, its evaluation and its log line are done."""
        self.deferred_at = state.global_step
        if self.requested_at != state.global_step:  # a callback that runs after this one has requested it
            self.requested_by_others_at = state.global_step
        self._store(state)

    def save_begun(self, state: Any, is_preemption: bool = False, is_resumable: bool = True) -> None:
        """Add the checkpoint of the current step; `on_save` or `save_failed` follows before the next save begins."""
        step = state.global_step
        is_own = self.requested_at == step != self.requested_by_others_at
        by_others = PERIODIC if self._is_periodic(state) else REQUESTED
        reasons = [PREEMPTION if is_preemption else POLICY if is_own else by_others]
        reasons += [checkpoint.reason for checkpoint in self.checkpoints if checkpoint.step == step]
        scores = {monitor: value for monitor, (at, value) in self.scores.items() if at == step}
        self._forget({step})
        self.checkpoints.append(SavedCheckpoint(step, max(reasons, key=REASONS.index), is_resumable, scores))
        self.checkpoints.sort(key=lambda checkpoint: checkpoint.step)
        self._store(state)

    def _is_periodic(self, state: Any) -> bool:
        """Whether `save_strategy` saves this step."""
        if self.save_strategy == "epoch":
            return is_whole(state.epoch)
        return self.save_strategy == "steps" and bool(state.save_steps) and state.global_step % state.save_steps == 0

    def save_failed(self, state: Any) -> None:
        """Remove the checkpoint that could not be written."""
        self._forget({state.global_step})
        self._store(state)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """List and link the checkpoint that is complete now, and delete those that it makes superfluous."""
        step = state.global_step
        if state.is_world_process_zero:
            protected = protected_steps(self.checkpoints, step, self.modes, self.save_top_k)
            if state.best_model_checkpoint:
                protected.add(step_of(state.best_model_checkpoint))
            doomed = superfluous_steps(self.checkpoints, protected, self.save_top_k)
            present = [at for path in checkpoints(self.files.folder) if (at := step_of(path)) not in doomed]
            doomed += steps_over_limit(present, self.limit, protected)
            # Listing and links come first: a process killed before the deletions leaves no link to a missing folder.
            best = {monitor: self._best(monitor, doomed) for monitor in self.modes}
            self.files.write_listing(self._listing(best, step))
            self.files.link_all(self._links(best, step))
            self._forget({at for at in doomed if self.files.remove(at)})
        self._store(state)

    def _forget(self, steps: Collection[int]) -> None:
        self.checkpoints = [checkpoint for checkpoint in self.checkpoints if checkpoint.step not in steps]

    def _best(self, monitor: str, doomed: Collection[int]) -> list[SavedCheckpoint]:
        """The best checkpoints of a monitor that exist and stay, at most `save_top_k`."""
        best = ranked(self.checkpoints, monitor, self.modes[monitor])
        best = [entry for entry in best if entry.step not in doomed and self.files.path(entry.step).is_dir()]
        return best if self.save_top_k < 0 else best[: self.save_top_k]

    def _links(self, best: Mapping[str, Sequence[SavedCheckpoint]], newest: int) -> dict[str, int]:
        """Name of each symlink -> the step that it points to."""
        links = {}
        for monitor, entries in best.items():
            if entries:
                links["best-" + re.sub(r"[^\w.-]", "_", self.metrics[monitor])] = entries[0].step
                if monitor == next(iter(self.modes)):
                    links["best-checkpoint"] = entries[0].step
        return links | ({"last-checkpoint": newest} if self.save_last else {})

    def _listing(self, best: Mapping[str, Sequence[SavedCheckpoint]], newest: int) -> dict[str, Any]:
        """The content of `checkpoints.json`."""
        monitors = {}
        for monitor, entries in best.items():
            values = [
                {"checkpoint": f"checkpoint-{entry.step}", "step": entry.step, "value": entry.scores[monitor]}
                for entry in entries
            ]
            monitors[self.metrics.get(monitor, monitor)] = {"mode": self.modes[monitor], "best": values}
        folder = os.path.relpath(self.files.folder, self.files.output_dir)
        return {"folder": folder, "monitors": monitors, "last": {"checkpoint": f"checkpoint-{newest}", "step": newest}}

    # ---- state ----

    def _store(self, state: Any) -> None:
        """Put this callback's state into `state`, which each checkpoint holds. Monitors are stored by normal form."""
        monitors = {}
        for name, mode in self.modes.items():
            scores = [[entry.step, entry.scores[name]] for entry in self.checkpoints if name in entry.scores]
            monitors[normal_form(name)] = {
                "mode": mode, "metric": self.metrics.get(name), "last": self.scores.get(name), "scores": scores
            }  # fmt: skip
        entries = [[entry.step, entry.reason, entry.resumable] for entry in self.checkpoints]
        stored = {"monitors": monitors, "checkpoints": entries, "requested_at": self.requested_at}
        stored |= {"requested_by_others_at": self.requested_by_others_at, "deferred_at": self.deferred_at}
        state.stateful_callbacks[STATE_KEY] = stored

    def _restore(self, stored: Mapping[str, Any] | None, state: Any) -> None:
        scores: dict[int, dict[str, float]] = {}
        for name, mode in self.modes.items():
            entry = stored["monitors"].get(normal_form(name)) if stored else None
            if entry and entry["mode"] == mode:
                for step, value in entry["scores"]:
                    scores.setdefault(step, {})[name] = value
                self.scores |= {name: tuple(entry["last"])} if entry["last"] else {}
                self.metrics |= {name: entry["metric"]} if entry["metric"] else {}
            elif state.global_step and state.is_world_process_zero:
                line = f"checkpointing: {name} ({mode}) has no values in the checkpoint; the best is counted from step "
                tqdm.write(f"{line}{state.global_step}", file=sys.stderr)
        if stored:
            self.checkpoints = [SavedCheckpoint(*entry, scores.get(entry[0], {})) for entry in stored["checkpoints"]]
            self.requested_at, self.deferred_at = stored["requested_at"], stored["deferred_at"]
            self.requested_by_others_at = stored["requested_by_others_at"]
        self._store(state)


class CheckpointFiles:
    """The folder of a run's checkpoints: its listing, its symlinks and its deletions.

    A listing, a symlink or a deletion that fails is printed and does not end the training.

    Args:
        folder: Holds the `checkpoint-N`.
        delete: As in ModelCheckpoint.
    """

    def __init__(self, folder: Path, delete: Callable[[Path], None]):
        self.folder, self.output_dir, self.delete = folder, folder, delete
        self.can_link = True

    def path(self, step: int) -> Path:
        """Return the folder of a step's checkpoint."""
        return self.folder / f"checkpoint-{step}"

    def write_listing(self, listing: Mapping[str, Any]) -> None:
        """Write `checkpoints.json` into the run's folder."""
        with _printed_errors(f"checkpoints.json in {self.output_dir} could not be written"):
            write_json(self.output_dir / "checkpoints.json", listing)

    def link_all(self, links: Mapping[str, int]) -> None:
        """Replace relative symlinks to checkpoints, each in one rename; without symlinks one line is printed once."""
        if not self.can_link:
            return
        self.can_link = False
        with _printed_errors(f"no symlinks in {self.folder}; see checkpoints.json instead"):
            for name, step in links.items():
                temporary = self.folder / f".{name}.{os.getpid()}.tmp"
                temporary.unlink(missing_ok=True)
                temporary.symlink_to(f"checkpoint-{step}", target_is_directory=True)
                os.replace(temporary, self.folder / name)
            self.can_link = True

    def remove(self, step: int) -> bool:
        """Delete the checkpoint of a step; whether it is gone."""
        with _printed_errors(f"{self.path(step)} could not be deleted"):
            self.delete(self.path(step))
            return True
        return False


@contextlib.contextmanager
def _printed_errors(line: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        tqdm.write(f"{line} ({error.strerror or error})", file=sys.stderr)
