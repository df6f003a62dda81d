"""Evaluation during training: averaged weights, several sets, named loss terms, preemption. A part of `Trainer`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import transformers
from transformers import TrainerCallback

from trainer.callbacks.early_stopping import EarlyStopping
from trainer.callbacks.metric_names import metric_or_error
from trainer.callbacks.model_checkpoint import ModelCheckpoint
from trainer.evaluator import EvalScores
from trainer.hf_patches import no_on_evaluate


class EvaluationInterrupted(Exception):
    """The run was preempted in the middle of an evaluation."""


class Evaluation:
    """Several sets in one event, averaged weights, named loss terms, metrics that the data derives from the loss."""

    def add_eval_batch(self, batch: Mapping[str, Any], loss: torch.Tensor, outputs: Any) -> None:
        """Add one batch of an evaluation to its losses and metrics."""
        if self.eval_scores is not None:
            self.eval_scores.add(batch, loss, outputs)

    def with_scores(self, run: Callable[[], Any], dataloader: Any, prefix: str) -> Any:
        """Run an evaluation loop, and add to its metrics the losses and what the data's metric computes.

        Args:
            run: transformers' own loop over `dataloader`.
            prefix: `eval`, or `eval_<set>` of one of several sets.
        """
        metric = self.settings.metrics.get(prefix)
        counted = getattr(getattr(dataloader, "batch_sampler", None), "counted", None)
        self.eval_scores = EvalScores(self.loss_terms, metric, counted, self.args.logging_nan_inf_filter)
        output = run()
        scores = self.eval_scores.compute(partial(self.accelerator.reduce, reduction="sum"))
        self.eval_scores = None
        output.metrics.update({f"{prefix}_{name}": value for name, value in scores.items()})
        return output

    def evaluate_sets(
        self, evaluate: Callable[..., dict[str, float]], eval_dataset: Any, ignore_keys: Any, prefix: str
    ) -> dict[str, float]:
        """Evaluate one set or several with the averaged weights, if there are any; `evaluate` is transformers' own."""
        sets = self.eval_dataset if eval_dataset is None else eval_dataset
        with self._not_training(), self.averaged():
            if not isinstance(sets, dict):
                return evaluate(eval_dataset, ignore_keys, prefix)
            return self._evaluate_each(evaluate, sets, eval_dataset is None, ignore_keys, prefix)

    def _evaluate_each(
        self,
        evaluate: Callable[..., dict[str, float]],
        sets: Mapping[str, Any],
        are_own: bool,
        ignore_keys: list[str] | None,
        prefix: str,
    ) -> dict[str, float]:
        """Evaluate several sets: metrics with each set's name, their mean loss, and one `on_evaluate` for all of them.

        Args:
            are_own: Whether `sets` are the Trainer's own, which transformers takes by name.
        """
        metrics: dict[str, float] = {}
        handler = self.callback_handler
        with no_on_evaluate(handler):
            for name, dataset in sets.items():
                metrics |= evaluate(name if are_own else dataset, ignore_keys, f"{prefix}_{name}")
        losses = [metrics[f"{prefix}_{name}_loss"] for name in sets if f"{prefix}_{name}_loss" in metrics]
        if len(losses) == len(sets):
            mean = {f"{prefix}_loss": sum(losses) / len(losses)}
            self.log(mean)
            metrics |= mean
        self.control = handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def score_test(self) -> dict[str, float]:
        """Score the test sets with the model that the run ends with; nothing is chosen by these scores."""
        scores: dict[str, float] = {}
        with self._without(EarlyStopping, ModelCheckpoint), self.averaged():
            for prefix, dataset in self.settings.test_datasets.items():
                scores |= transformers.Trainer.evaluate(self, dataset, metric_key_prefix=prefix)
        return scores

    def evaluate_in_training(self, run: Callable[[], dict[str, float]], skip_scheduler: bool) -> dict[str, float]:
        """Run an evaluation of the training loop and pass its metrics to a plateau schedule.

        Args:
            run: transformers' own method.
            skip_scheduler: This is the evaluation before the first step; for a resumed run nothing depends on it.
        """
        if skip_scheduler and self.state.global_step:
            with self._without(EarlyStopping, ModelCheckpoint):
                return run()
        metrics = run()
        if skip_scheduler:
            self.model_checkpoint.check_monitors()
        else:
            self._show_to_schedule(metrics)
        return metrics

    def _show_to_schedule(self, metrics: Mapping[str, float]) -> None:
        """Give a plateau schedule its metric, if that is one of an evaluation."""
        wanted = self.plan.needs_metric
        if wanted is not None and not self.plan.follows_training_loss:
            self.lr_scheduler.observe(metrics[metric_or_error(wanted, metrics, "scheduler.monitor")])

    @contextlib.contextmanager
    def _without(self, *kinds: type[TrainerCallback]) -> Iterator[None]:
        before = self.callback_handler.callbacks
        self.callback_handler.callbacks = [callback for callback in before if not isinstance(callback, kinds)]
        try:
            yield
        finally:
            self.callback_handler.callbacks = before

    @contextlib.contextmanager
    def _not_training(self) -> Iterator[None]:
        """Do not count the time inside as training time."""
        if self.meter is None:
            yield
            return
        self.meter.pause()
        try:
            yield
        finally:
            self.meter.resume()

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """Inside, the model has the averaged weights, if there are any."""
        return self.ema.swapped() if self.ema is not None else contextlib.nullcontext()

    def during_evaluation(self) -> None:
        """After each batch of an evaluation in training: interrupt it if the run is preempted."""
        if self.is_in_train and self.meter is not None and self.checkpointing.poll():
            raise EvaluationInterrupted
