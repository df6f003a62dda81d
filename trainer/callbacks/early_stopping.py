"""End a training whose metric no longer improves, has reached a threshold, has diverged or is not finite."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

from storage import safe_read
from trainer.callbacks.metric_names import (
    LatestMetrics,
    find_metric,
    is_evaluation,
    metric_or_error,
    normal_form,
    required_direction,
)
from trainer.settings import EarlyStoppingConfig

DECIDING = ("patience", "stopping_threshold", "divergence_threshold", "check_finite")


@dataclass
class Progress:
    """The state of the checks, which is stored in every checkpoint."""

    metric: str | None = None  # the logged key that `monitor` stands for
    best: float | None = None
    best_step: int | None = None
    wait: int = 0  # checks since the last improvement
    checked_step: int = 0  # an evaluation of the untrained model, at step 0, does not count
    reason: str | None = None  # why the training was stopped


class EarlyStopping(TrainerCallback):
    """Checks one metric after each evaluation, or at each epoch's end; a step is checked once.

    Reasons to stop, in this order: the metric is not finite, has reached `stopping_threshold`, is worse than
    `divergence_threshold`, or has not improved by more than `min_delta` for `patience` checks. Before `min_epochs`
    epochs checks are counted, but do not stop the training.

    Its state is stored in `state.stateful_callbacks` under its own key. transformers' `ExportableState` is not used: it
    is off by default; if it is on, it replaces the configured callback by one with the checkpoint's settings, confuses
    two callbacks of one class, and fails at the first save of a resumed run with an additional callback.

    It must come after callbacks that request evaluations at an epoch's end.

    Raises:
        ValueError: the metric's direction is neither given nor known; with `strict`, the metric is missing when
            training continues.
    """

    def __init__(
        self, settings: EarlyStoppingConfig, min_epochs: int | None = None, directions: Mapping[str, str] | None = None
    ):
        self.direction = required_direction(settings.monitor, settings.mode, directions, "early_stopping")
        self.settings, self.min_epochs = settings, min_epochs or 0
        self.progress, self.latest = Progress(), LatestMetrics()
        self.epoch_ended = self.is_missing = self.printed_missing = self.printed_waiting = False
        self.logged_step = -1  # the last step with a training log

    # ---- events ----

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.epoch_ended, self.is_missing, self.logged_step = False, False, -1
        self.latest.begin(state.log_history)
        stored = state.stateful_callbacks.get(self.key)
        self.progress = Progress(**stored["progress"]) if stored else Progress()
        self.epoch_ended = bool(stored and stored.get("epoch_ended"))
        self.progress.reason = None
        if state.global_step and not stored:
            self._print(args, state, f"early stopping: the checkpoint has no checks; counting from {state.global_step}")
        self._store(state)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.check_monitor(args, state)

    def check_monitor(self, args: Any, state: Any) -> None:
        """Raise UnknownMetric (print it, without `strict`) if the metric is missing where training continues."""
        if self.is_missing:
            self._missing(args, state)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.latest.add(logs or {})
        if "loss" in (logs or {}):
            self.logged_step = state.global_step
            if self.epoch_ended and not control.should_evaluate:
                self._check(args, state, control)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        """Called once for each evaluation, with the metrics of all its sets."""
        if self.settings.check_on_train_epoch_end and not self.epoch_ended:
            return
        self.latest.add(metrics)
        name = find_metric(self.settings.monitor, self.latest.values)
        if name is None or name in metrics or not is_evaluation(name):
            self._check(args, state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check now, or after the epoch's log line or evaluation if one is due: they follow this event."""
        self.epoch_ended = self.settings.check_on_train_epoch_end
        log_is_due = control.should_log and self.logged_step != state.global_step
        if self.epoch_ended and not control.should_evaluate and not log_is_due:
            self._check(args, state, control)
        self._store(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.progress.metric is None:  # too late to be an error: the model is trained
            self._missing(args, state, fatal=False)

    # ---- one check ----

    def _check(self, args: Any, state: Any, control: Any) -> None:
        name = find_metric(self.settings.monitor, self.latest.values)
        if name is None:
            self.is_missing = not self.latest.may_still_come(self.settings.monitor)
            return
        self.is_missing = self.epoch_ended = False
        if self.progress.checked_step == state.global_step:
            return
        if self.progress.metric != name:  # a bare name stands for a training metric until the first evaluation
            self.progress = Progress(metric=name)
        self.progress.checked_step = state.global_step
        reason = self._judge(args, state, self.latest.values[name])
        if reason and state.epoch < self.min_epochs:
            if not self.printed_waiting:
                self._print(args, state, f"early stopping waits for min_epochs ({self.min_epochs}): {name} {reason}")
            self.printed_waiting = True
        elif reason:
            self.progress.reason = f"early stopping at step {state.global_step}: {name} {reason}"
            self._print(args, state, self.progress.reason)
            control.should_training_stop = True
        self._store(state)

    def _judge(self, args: Any, state: Any, value: float) -> str | None:
        """Count a value; return the reason to stop, or None."""
        settings, progress = self.settings, self.progress
        limit = self._limit(value, settings.stopping_threshold, settings.divergence_threshold)
        if self._improves(value):
            if settings.verbose:
                before = "" if progress.best is None else f" from {progress.best:.6g}"
                self._print(args, state, f"step {state.global_step}: {progress.metric} improved{before} to {value:.6g}")
            progress.best, progress.best_step, progress.wait = value, state.global_step, 0
        else:
            progress.wait += 1
        if limit or progress.wait < max(settings.patience, 1):
            return limit
        by = f" by {settings.min_delta:g}" if settings.min_delta else ""
        best = "no finite value so far" if progress.best is None else f"best {progress.best:.6g}"
        return f"has not improved{by} for {progress.wait} check{'s' * (progress.wait > 1)}; {best}"

    def _limit(self, value: float, good: float | None, bad: float | None) -> str | None:
        if self.settings.check_finite and not math.isfinite(value):
            return f"is {value}"
        if good is not None and (value == good or self._better(value, good)):
            return f"has reached {good:.6g}: {value:.6g}"
        if bad is not None and self._better(bad, value):
            return f"is worse than {bad:.6g}: {value:.6g}"
        return None

    def _better(self, value: float, than: float) -> bool:
        return value < than if self.direction == "min" else value > than

    def _improves(self, value: float) -> bool:
        if math.isnan(value) or (self.settings.check_finite and math.isinf(value)):
            return False
        delta, worst = self.settings.min_delta, math.inf
        if self.direction == "max":
            delta, worst = -delta, -worst
        return self._better(value + delta, worst if self.progress.best is None else self.progress.best)

    # ---- state and lines ----

    @property
    def key(self) -> str:
        return state_key(self.settings)

    def _store(self, state: Any) -> None:
        state.stateful_callbacks[self.key] = {
            "progress": asdict(self.progress),
            "settings": _deciding(self.settings),
            "epoch_ended": self.epoch_ended,  # an epoch's check that still waits for its metric
        }

    def _missing(self, args: Any, state: Any, fatal: bool = True) -> None:
        self.is_missing = False
        try:
            metric_or_error(self.settings.monitor, self.latest.values, "early_stopping.monitor")
        except ValueError as error:
            if self.settings.strict and fatal:
                raise
            if not self.printed_missing:
                self._print(args, state, f"early stopping is skipped: {error}")
            self.printed_missing = True

    def _print(self, args: Any, state: Any, line: str) -> None:
        every_rank = args.world_size > 1 and not self.settings.log_rank_zero_only
        if every_rank or state.is_world_process_zero:
            tqdm.write(f"[rank {args.process_index}] {line}" if every_rank else line, file=sys.stderr)


def already_stopped(checkpoint: Path, settings: EarlyStoppingConfig) -> str | None:
    """Return why the run that wrote a checkpoint was stopped there; None: it was not, or the settings have changed.

    A Trainer checks its stop flag only after a step, so a stopped run that is resumed (a requeued job) must be
    recognized before it trains.
    """
    state = safe_read.read_json(checkpoint / "trainer_state.json")
    stored = state.get("stateful_callbacks", {}).get(state_key(settings))
    is_same = stored and stored["settings"] == _deciding(settings)
    return stored["progress"]["reason"] if is_same else None


def state_key(settings: EarlyStoppingConfig) -> str:
    """Return the key of the stored state; the state of another metric or another `min_delta` is not used."""
    return f"early_stopping: {normal_form(settings.monitor)}, {settings.mode or 'declared'}, {settings.min_delta:g}"


def _deciding(settings: EarlyStoppingConfig) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in DECIDING}
