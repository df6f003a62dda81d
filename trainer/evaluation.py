"""Evaluation during training: averaged weights, several sets, named loss terms, preemption. A part of `Trainer`."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import transformers
from accelerate.utils import gather_object, send_to_device
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_pt_utils import nested_concat, nested_detach

from trainer.callbacks.early_stopping import EarlyStopping
from trainer.callbacks.metric_names import metric_or_error
from trainer.callbacks.model_checkpoint import ModelCheckpoint
from trainer.callbacks.user_callbacks import is_users
from trainer.evaluator import EvalScores, NothingScored
from trainer.hf_patches import fire_on_evaluate, on_evaluate_goes_to
from trainer.optimization.lr_scheduler import Schedule


class EvaluationInterrupted(Exception):
    """The run was preempted in the middle of an evaluation."""


class Evaluation:
    """Several sets in one event, averaged weights, named loss terms, metrics that the data derives from the loss."""

    # ---- one batch ----

    def predict_batch(self, model: nn.Module, inputs: Any) -> tuple[torch.Tensor | None, Any]:
        """Run the model on a batch of an evaluation; returns (loss, outputs). Without labels there is no loss."""
        named = inputs if isinstance(inputs, Mapping) else {}
        wanted = self._wanted_labels(named)
        is_labelled = all(named.get(name) is not None for name in wanted)
        computes = bool(wanted) or self.has_own_loss or self.can_return_loss
        computes |= self.compute_loss_func is not None and "labels" in named
        with torch.no_grad(), self.compute_loss_context_manager():
            if is_labelled and computes:
                count = self.loss_terms.items(inputs)["loss"] if self.compute_loss_func is not None else None
                # transformers multiplies by the number of processes, over which it has added up the items
                count = count if count is None else count * self.args.world_size
                return self.compute_loss(model, inputs, return_outputs=True, num_items_in_batch=count)
            outputs = model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)
        # A forward without labels in its signature: there is a loss if the model returns one.
        loss = outputs.get("loss") if is_labelled and isinstance(outputs, Mapping) else None
        return loss, outputs

    def _wanted_labels(self, inputs: Mapping[str, Any]) -> list[str]:
        """The entries of a batch that its loss needs; `labels` and `shift_labels` are two forms of the same labels."""
        names = self.label_names if self.settings.loss is None else sorted(self.settings.loss.targets)
        if "shift_labels" not in names or "labels" not in names:
            return names
        absent = "labels" if "shift_labels" in inputs else "shift_labels"
        return [name for name in names if name != absent]

    def predictions(self, outputs: Any, has_loss: bool, ignore_keys: Sequence[str] | None) -> Any:
        """The outputs of a batch without its loss, as transformers gathers them: a tensor, or a tuple of several."""
        if ignore_keys is None:
            default = ["past_key_values"] if hasattr(self.model, "config") else []
            ignore_keys = getattr(getattr(self.model, "config", None), "keys_to_ignore_at_inference", default)
        if isinstance(outputs, Mapping):
            hidden = {*ignore_keys, "loss", "losses"}
            values = tuple(value for name, value in outputs.items() if name not in hidden and value is not None)
        else:
            values = outputs[1:] if has_loss else outputs
        values = nested_detach(values)
        return values[0] if len(values) == 1 else values

    def labels_of(self, inputs: Any) -> Any:
        """The labels of a batch, as transformers gathers them; None if the batch has not all of them."""
        named = inputs if isinstance(inputs, Mapping) else {}
        labels = tuple(named.get(name) for name in self._wanted_labels(named))
        if not labels or any(value is None for value in labels):
            return None
        labels = nested_detach(labels)
        return labels[0] if len(labels) == 1 else labels

    def gathered(self, values: Any) -> Any:
        """The values of a batch of all processes, in the order of the data, without repeated batches."""
        own = None if self.eval_scores.is_repeated else send_to_device(values, "cpu")
        parts = [part for part in gather_object([own]) if part is not None]
        return functools.reduce(nested_concat, parts)

    # ---- one set ----

    def with_scores(self, run: Callable[[], Any], dataloader: Any, prefix: str) -> Any:
        """Run an evaluation loop, and add to its metrics the losses and what the data's metric computes.

        Args:
            run: transformers' own loop over `dataloader`.
            prefix: `eval`, or `eval_<set>` of one of several sets.
        """
        metric = self.settings.metrics.get(prefix)
        counted = getattr(getattr(dataloader, "batch_sampler", None), "counted", None)
        before, self.eval_scores = (
            self.eval_scores,
            EvalScores(self.loss_terms, metric, counted, self.args.logging_nan_inf_filter),
        )
        if counted is not None:  # the processes share the batches in Keel's own way
            self.gather_function = self.gathered
        try:
            output = run()
            scores = self.eval_scores.compute(partial(self.accelerator.reduce, reduction="sum"))
            if self.eval_scores.batches and not scores and (metric is not None or self.settings.loss is not None):
                raise NothingScored(prefix, self.eval_scores.entries, self._wanted_labels({}))
        finally:
            self.eval_scores = before  # a callback may evaluate in the middle of an evaluation
        output.metrics.update({f"{prefix}_{name}": value for name, value in scores.items()})
        return output

    # ---- several sets ----

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
        """Evaluate several sets: metrics with each set's name, and their mean loss.

        Users' callbacks get one `on_evaluate` for each set, Keel's own (early stopping, checkpoints) one for all.

        Args:
            are_own: Whether `sets` are the Trainer's own, which transformers takes by name.
        """
        metrics: dict[str, float] = {}
        handler, may_interrupt = self.callback_handler, self.may_interrupt
        for name, dataset in sets.items():
            self.may_interrupt = may_interrupt
            with on_evaluate_goes_to(handler, is_users, self.end_own_evaluation):
                metrics |= evaluate(name if are_own else dataset, ignore_keys, f"{prefix}_{name}")
        losses = [metrics[f"{prefix}_{name}_loss"] for name in sets if f"{prefix}_{name}_loss" in metrics]
        if losses and len(losses) == len(sets):
            mean = {f"{prefix}_loss": sum(losses) / len(losses)}
            self.log(mean)
            metrics |= mean
        self.control = fire_on_evaluate(
            handler, lambda callback: not is_users(callback), self.args, self.state, self.control, metrics
        )
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
                return self._interruptible(run)
        metrics = self._interruptible(run)
        if skip_scheduler:
            self.model_checkpoint.check_monitors()
        else:
            self._show_to_schedule(metrics)
        return metrics

    def _interruptible(self, run: Callable[[], dict[str, float]]) -> dict[str, float]:
        self.may_interrupt = True
        try:
            return run()
        finally:
            self.may_interrupt = False

    def end_own_evaluation(self) -> None:
        """Before `on_evaluate`: what callbacks evaluate there is not left early."""
        self.may_interrupt = False

    def _show_to_schedule(self, metrics: Mapping[str, float]) -> None:
        """Give a plateau schedule its metric, if that is one of an evaluation."""
        wanted = self.plan.needs_metric
        if wanted is not None and not self.plan.follows_training_loss and isinstance(self.lr_scheduler, Schedule):
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
        """After each batch: interrupt the training loop's own evaluation, not a callback's, if the run is preempted."""
        if self.may_interrupt and self.checkpointing.poll():
            raise EvaluationInterrupted
