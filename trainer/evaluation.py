"""Evaluation: whose weights it sees, what it reports, how it is left when the run is to stop. A part of `Trainer`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import transformers
from transformers import TrainerCallback

from trainer.callbacks.early_stopping import EarlyStopping
from trainer.callbacks.metric_names import metric_or_error
from trainer.callbacks.model_checkpoint import ModelCheckpoint
from trainer.optimization.lr_scheduler import Schedule
from trainer.optimization.lr_scheduler_config import is_training_loss


class EvaluationLeft(Exception):
    """The run was told to stop in the middle of an evaluation."""


class Evaluating(transformers.Trainer):
    """Several sets in one event, averaged weights, named loss terms, metrics that the data derives from the loss."""

    def evaluation_loop(self, *arguments: Any, **options: Any) -> Any:
        self.eval_terms = []
        output = super().evaluation_loop(*arguments, **options)
        prefix = options.get("metric_key_prefix", "eval")
        samples = sum(terms[""] for terms in self.eval_terms)
        for name in sorted({name for terms in self.eval_terms for name in terms} - {""}):
            output.metrics[f"{prefix}_loss_{name}"] = sum(terms.get(name, 0.0) for terms in self.eval_terms) / samples
        self.eval_terms = None
        if self.settings.metrics is not None and f"{prefix}_loss" in output.metrics:
            further = self.settings.metrics(prefix.removeprefix("eval_"), output.metrics[f"{prefix}_loss"])
            output.metrics.update({f"{prefix}_{name}": value for name, value in further.items()})
        return output

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        sets = self.eval_dataset if eval_dataset is None else eval_dataset
        with self._not_training(), self.averaged():
            if not isinstance(sets, dict):
                return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
            return self._evaluate_each(sets, eval_dataset is None, ignore_keys, metric_key_prefix)

    def _evaluate_each(
        self, sets: Mapping[str, Any], are_own: bool, ignore_keys: list[str] | None, prefix: str
    ) -> dict[str, float]:
        """Several sets: each one's metrics under its name, their mean loss, and one event that tells all of them."""
        metrics: dict[str, float] = {}
        handler = self.callback_handler
        handler.on_evaluate = lambda args, state, control, metrics: control
        try:
            for name, each in sets.items():
                metrics |= super().evaluate(name if are_own else each, ignore_keys, f"{prefix}_{name}")
        finally:
            del handler.on_evaluate
        losses = [metrics[f"{prefix}_{name}_loss"] for name in sets if f"{prefix}_{name}_loss" in metrics]
        if len(losses) == len(sets):
            mean = {f"{prefix}_loss": sum(losses) / len(losses)}
            self.log(mean)
            metrics |= mean
        self.control = handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> dict[str, float]:
        if skip_scheduler and self.state.global_step:  # a look at a resumed run: nothing is decided on it
            with self._without(EarlyStopping, ModelCheckpoint):
                return super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)
        metrics = super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)
        if not skip_scheduler:
            self._show_to_schedule(metrics)
        return metrics

    def _show_to_schedule(self, metrics: Mapping[str, float]) -> None:
        """A plateau's metric, if it follows one of the evaluation's."""
        schedule = self.lr_scheduler
        wanted = schedule.needs_metric if isinstance(schedule, Schedule) else None
        if wanted is not None and not is_training_loss(wanted):
            schedule.observe(metrics[metric_or_error(wanted, metrics, "scheduler.monitor")])

    @contextlib.contextmanager
    def _without(self, *kinds: type[TrainerCallback]) -> Iterator[None]:
        before = self.callback_handler.callbacks
        self.callback_handler.callbacks = [each for each in before if not isinstance(each, kinds)]
        try:
            yield
        finally:
            self.callback_handler.callbacks = before

    @contextlib.contextmanager
    def _not_training(self) -> Iterator[None]:
        """The time spent here is not training time."""
        if self.meter is None:
            yield
            return
        self.meter.pause()
        try:
            yield
        finally:
            self.meter.resume()

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """The model holds the averaged weights inside, where there are any."""
        return self.ema.swapped() if self.ema is not None else contextlib.nullcontext()

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        wanted = self.args.metric_for_best_model
        if wanted is not None:  # `val/loss` is `eval_loss`; one that is not there is told with those that are
            self.args.metric_for_best_model = metric_or_error(wanted, metrics, "metric_for_best_model")
        return super()._determine_best_metric(metrics, trial)

    def during_evaluation(self) -> None:
        """After each batch of an evaluation: one that belongs to the training is left where that is told to stop."""
        if self.is_in_train and self.meter is not None and self.checkpointing.poll():
            raise EvaluationLeft
