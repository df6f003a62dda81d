"""Where a step ends, and a run that is told to stop leaves: a part of `Trainer`."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import torch
import transformers
from torch import nn

from trainer.callbacks.early_stopping import already_stopped, state_key
from trainer.callbacks.epochs import is_whole
from trainer.callbacks.log_files import is_evaluation
from trainer.checkpointing.async_writer import SavesFailed
from trainer.checkpointing.manager import deferred_on_save
from trainer.checkpointing.step_state import NOTHING_PENDING, PendingStepWork
from trainer.dataloading.resume_position import positions_instead_of_skipping
from trainer.evaluation import EvaluationLeft
from trainer.preemption import Preempted
from trainer.serialization import rng_state

STEP, EPOCH = "step", "epoch"  # whose end it is


class Stopping(transformers.Trainer):
    """Logs, evaluations and saves at a step's end; told to stop, it saves there and says what is still to be done."""

    def _run_epoch(self, *, model: nn.Module, epoch: int, start_time: float, **options: Any) -> None:
        self._finish_step(model, epoch, start_time)
        if self.control.should_training_stop:
            return
        with positions_instead_of_skipping():
            super()._run_epoch(model=model, epoch=epoch, start_time=start_time, **options)

    def _finish_step(self, model: nn.Module, epoch: int, start_time: float) -> None:
        """What a resumed run's last step had still to do when it was told to stop: see `stop_here`."""
        left, self.pending_work = self.pending_work, NOTHING_PENDING
        if not left:
            return
        self.phase = STEP if left.epoch else EPOCH
        # Evaluations may draw random numbers: they begin where they would have, and training goes on where they end.
        self._load_rng_state(str(self.resuming_from))
        self.generators_are_due = False
        is_end = self.state.global_step >= self.state.max_steps
        self.control.should_training_stop |= is_end or (left.stop and self._still_stops())
        known = (self._tr_loss, left.grad_norm, model, None, epoch, None, start_time, left.learning_rate)
        self.control.should_evaluate, self.control.should_save = left.evaluate, left.save
        self._maybe_log_save_evaluate(*known)
        if left.epoch and (is_whole(self.state.epoch) or self.control.should_training_stop):
            self.control = self.callback_handler.on_epoch_end(self.args, self.state, self.control)
            self._maybe_log_save_evaluate(*known)

    def _still_stops(self) -> bool:
        """Whether what had ended the run would do so now: not an early stopping that has been given other limits."""
        settings = self.settings.early_stopping
        if settings is None:
            return True
        state = json.loads((self.resuming_from / "trainer_state.json").read_text(encoding="utf-8"))
        stored = state["stateful_callbacks"].get(state_key(settings))
        had_stopped = stored is not None and stored["progress"]["reason"]
        return not had_stopped or already_stopped(self.resuming_from, settings) is not None

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.checkpoint_dir) if trial is None else super()._get_output_dir(trial)

    def _maybe_log_save_evaluate(
        self,
        tr_loss: torch.Tensor,
        grad_norm: torch.Tensor | float | None,
        model: nn.Module,
        trial: Any,
        epoch: float,
        ignore_keys_for_eval: list[str] | None,
        start_time: float,
        learning_rate: float | None = None,
    ) -> None:
        """The end of a step or of an epoch: where a run that was told to stop does so."""
        is_told, saves = self.checkpointing.poll(), self.control.should_save
        evaluates = self.control.should_evaluate
        generators = rng_state.states() if evaluates else None
        if is_told:
            self.control.should_evaluate = self.control.should_save = False
        try:
            with deferred_on_save(self.callback_handler):
                super()._maybe_log_save_evaluate(
                    tr_loss, grad_norm, model, trial, epoch, ignore_keys_for_eval, start_time, learning_rate
                )
        except EvaluationLeft:
            is_told, saves = True, saves or self.control.should_save
        if is_told:
            self.stop_here(evaluates, saves, grad_norm, learning_rate, generators)

    def stop_here(
        self,
        evaluates: bool,
        saves: bool,
        grad_norm: torch.Tensor | float | None,
        learning_rate: float | None,
        generators: Any,
    ) -> None:
        """Saves the state and leaves.

        What is left of this step is done first when the run goes on: its evaluation, a save that follows from it, and
        the end of the epoch, if it was the epoch's last.

        Args:
            evaluates, saves: Whether an evaluation and a save are due.
            grad_norm, learning_rate: Of the step, for the log line of the epoch.
            generators: Of random numbers, as they were before the evaluation.

        Raises:
            Preempted: always.
        """
        step = self.state.global_step
        ends_epoch = self._epochs_end_is_next()
        left = PendingStepWork(
            evaluate=evaluates,
            save=saves and (evaluates or ends_epoch),
            epoch=ends_epoch,
            stop=self.control.should_training_stop and step < self.state.max_steps,  # a longer run goes on
            grad_norm=None if grad_norm is None else float(grad_norm),
            learning_rate=learning_rate,
        )
        if evaluates:  # some sets of it may be evaluated and logged already
            begun = [each for each in self.state.log_history if each.get("step") == step and is_evaluation(each)]
            self.state.log_history = [each for each in self.state.log_history if each not in begun]
        before = self.checkpointing.number
        with self._not_training():
            self.guard.settle()
            with contextlib.suppress(SavesFailed):
                self.checkpointing.save(left, not saves or left.save, generators, resumable=True)
                self.checkpointing.wait_saved()
        is_saved = self.checkpointing.number > before and self.checkpointing.was_saved
        raise Preempted(self.signals.received or "another process", step, is_saved)

    def _epochs_end_is_next(self) -> bool:
        """Whether this is the end of an epoch's last step, or of the run's: what they bring has yet to come."""
        is_last = self.control.should_training_stop or self.control.should_epoch_stop
        return self.phase == STEP and (is_last or is_whole(self.state.epoch))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """A checkpoint holds all that its step brought: at an epoch's end also its log line and its evaluation, which a
        resumed run does not repeat."""
        if self._epochs_end_is_next():
            self.model_checkpoint.defer_save(self.state)
            return
        with self._not_training():
            self.guard.settle()
            self.checkpointing.save()

    def _finalize_training(self, trial: Any, num_train_samples: int, start_time: float) -> Any:
        if self.pending_work:  # of the last epoch's last step: no epoch has begun
            self._finish_step(self.model_wrapped, int(self.state.epoch), start_time)
        self.checkpointing.wait_saved()
        return super()._finalize_training(trial, num_train_samples, start_time)
