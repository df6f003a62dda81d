"""What happens at the end of a step or epoch, and where a preempted run stops."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from trainer.callbacks.early_stopping import EarlyStopping, already_stopped, state_key
from trainer.callbacks.hooks import is_whole
from trainer.callbacks.log_files import is_evaluation
from trainer.callbacks.metric_names import UnknownMetric
from trainer.callbacks.user_callbacks import observes
from trainer.checkpointing.async_writer import SavesFailed
from trainer.checkpointing.contents import NOTHING_PENDING, PendingStepWork
from trainer.evaluation import EvaluationInterrupted
from trainer.hf_patches import deferred_on_save
from trainer.preemption import Preempted
from trainer.serialization import rng_state

STEP, EPOCH = "step", "epoch"  # which of them ends


class StepEnd(NamedTuple):
    """What is due at the end of a step.

    Attributes:
        evaluates, saves: Whether an evaluation and a save are due.
        grad_norm, learning_rate: Of the step, for the log line of an epoch that a preempted run finishes later.
        rng: RNG states before the evaluation; None: there is none.
    """

    evaluates: bool
    saves: bool
    grad_norm: torch.Tensor | float | None
    learning_rate: float | None
    rng: Any


class StepBoundary:
    """Log, evaluate and save at the end of a step or epoch; a preempted run stops there. A part of `Trainer`."""

    def finish_step(self, model: nn.Module, epoch: int, start_time: float) -> None:
        """Do the pending work of the step at which the checkpoint's run was preempted, see `save_pending`."""
        pending, self.pending_work = self.pending_work, NOTHING_PENDING
        if not pending:
            return
        self.phase = STEP if pending.epoch else EPOCH
        # Evaluations may use random numbers: restore the state before them, and train on with the state after them.
        self._load_rng_state(str(self.resuming_from))
        self.rng_restore_pending = False
        is_end = self.state.global_step >= self.state.max_steps
        self.control.should_training_stop |= is_end or (pending.stop and self._still_stops())
        known = (self._tr_loss, pending.grad_norm, model, None, epoch, None, start_time, pending.learning_rate)
        self.control.should_evaluate, self.control.should_save = pending.evaluate, pending.save
        self._maybe_log_save_evaluate(*known)
        if pending.epoch and (is_whole(self.state.epoch) or self.control.should_training_stop):
            self.control = self.callback_handler.on_epoch_end(self.args, self.state, self.control)
            self._maybe_log_save_evaluate(*known)
        self.phase = STEP

    def _still_stops(self) -> bool:
        """Whether the reason why the run ended still holds; early stopping may have other limits now."""
        settings = self.settings.early_stopping
        if settings is None:
            return True
        state = json.loads((self.resuming_from / "trainer_state.json").read_text(encoding="utf-8"))
        stored = state["stateful_callbacks"].get(state_key(settings))
        had_stopped = stored is not None and stored["progress"]["reason"]
        return not had_stopped or already_stopped(self.resuming_from, settings) is not None

    def end_step(
        self, run: Callable[[], None], grad_norm: torch.Tensor | float | None, learning_rate: float | None
    ) -> None:
        """Log, evaluate and save at the end of a step or epoch, and stop here if the run is preempted.

        Args:
            run: transformers' own method, which logs, evaluates and saves as `self.control` says.
            grad_norm, learning_rate: See `StepEnd`.

        Raises:
            Preempted: after the state was saved.
        """
        stops, evaluates = self.checkpointing.poll(), self.control.should_evaluate
        rng = rng_state.states() if evaluates else None
        due = StepEnd(evaluates, self.control.should_save, grad_norm, learning_rate, rng)
        if stops:
            self.control.should_evaluate = self.control.should_save = False
        else:
            self.checkpointing.dispatch_on_save()
        before = self.checkpointing.number
        try:
            with deferred_on_save(self.callback_handler):
                run()
            if evaluates and not (stops or self.control.should_training_stop):
                self._check_monitors()
        except EvaluationInterrupted:
            stops, due = True, due._replace(saves=due.saves or self.control.should_save)
        except UnknownMetric as error:
            if self.checkpointing.number == before:
                self.save_pending(due)
            self.checkpointing.wait_saved()
            if not self.checkpointing.was_saved:
                raise
            remedy = "correct the name and resume with --resume_from_checkpoint auto --resume_changed allow"
            saved = f"the state is in checkpoint-{self.state.global_step}"
            raise UnknownMetric(f"{error}; {saved}: {remedy}") from None
        if stops:
            is_saved = self.save_pending(due)
            raise Preempted(self.signals.received or "another process", self.state.global_step, is_saved)

    def _check_monitors(self) -> None:
        """Raise UnknownMetric if the last evaluation lacks a monitor; called where training continues."""
        self.model_checkpoint.check_monitors()
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, EarlyStopping):
                callback.check_monitor(self.args, self.state)

    def save_pending(self, due: StepEnd) -> bool:
        """Save the state at once; whether that succeeded.

        The pending work of this step (its evaluation, a save that follows from it, the end of the epoch if this was the
        epoch's last step) is stored in the checkpoint and done first on resume.
        """
        step = self.state.global_step
        ends_epoch = self._epochs_end_is_next()
        pending = PendingStepWork(
            evaluate=due.evaluates,
            save=due.saves and (due.evaluates or ends_epoch),
            epoch=ends_epoch,
            stop=self.control.should_training_stop and step < self.state.max_steps,  # a longer run would continue
            grad_norm=None if due.grad_norm is None else float(due.grad_norm),
            learning_rate=due.learning_rate,
        )
        if due.evaluates:  # some evaluation sets may be logged already
            begun = [entry for entry in self.state.log_history if entry.get("step") == step and is_evaluation(entry)]
            self.state.log_history = [entry for entry in self.state.log_history if entry not in begun]
        before = self.checkpointing.number
        with self._not_training():
            self.guard.settle()
            with contextlib.suppress(SavesFailed):
                self.checkpointing.save(pending, not due.saves or pending.save, due.rng, resumable=True)
                self.checkpointing.wait_saved()
        return self.checkpointing.number > before and self.checkpointing.was_saved

    def _epochs_end_is_next(self) -> bool:
        """Whether the end of the epoch, or of the run, follows this step directly."""
        is_last = self.control.should_training_stop or self.control.should_epoch_stop
        return self.phase == STEP and (is_last or is_whole(self.state.epoch))

    def save_checkpoint(self) -> None:
        """Save now, or at the end of the epoch if this is its last step.

        A checkpoint contains everything that belongs to its step, so that a resumed run repeats nothing: at the end of
        an epoch also the log line and the evaluation.
        """
        if self._epochs_end_is_next():
            self.model_checkpoint.defer_save(self.state)
            return
        with self._not_training():
            self.guard.settle()
            self.checkpointing.save()
            if any(observes(callback, "on_save") for callback in self.callback_handler.callbacks):
                self.checkpointing.wait_saved()  # it may save the model beside the checkpoint: of the same step

    def finish_last_step(self, start_time: float) -> None:
        """Do the pending work of a run that was preempted at its last step, and wait for the last save."""
        if self.pending_work:  # no epoch has begun since the resume
            self.finish_step(self.model_wrapped, int(self.state.epoch), start_time)
        self.checkpointing.wait_saved()
