"""Every method of transformers' Trainer that Keel overrides; each docstring says what would go wrong without it.

The methods are short: they delegate to plainly named methods of the mixins (`OptimizationSetup`, `DataLoading`,
`Evaluation`, `StepBoundary`, `CheckpointIO`) and of `Trainer`, and pass transformers' method where it is still needed.
`tests/trainer/test_hf_contract.py` compares every name and signature with the installed version.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.utils import find_batch_size
from torch import nn

from trainer.callbacks.metric_names import metric_or_error
from trainer.checkpointing.trainer_io import CheckpointIO, checkpoint_load_errors, restore_rng
from trainer.dataloading.dataloaders import DataLoading, collate_named_keys, start_at
from trainer.dataloading.samplers import SeededOrder, recorder_of
from trainer.evaluation import Evaluation
from trainer.hf_patches import no_argument_comparison, no_deletion_at_end, replaced, start_by_position
from trainer.loss_terms import WHOLE_STEP, outputs_with_loss
from trainer.optimization_setup import OptimizationSetup
from trainer.serialization import state_dict_io
from trainer.step_boundary import StepBoundary


class HFOverrides(OptimizationSetup, DataLoading, StepBoundary, Evaluation, CheckpointIO, transformers.Trainer):
    """transformers' Trainer with Keel's behaviour in place of its own."""

    # ---- set-up ----

    def create_accelerator_and_postprocess(self) -> None:
        """Without it: processes that were launched together might train apart, all writing the same files."""
        self.check_launch()
        super().create_accelerator_and_postprocess()
        self.check_sharding()

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Without it: DeepSpeed, which drops the optimizer that was built, would train with transformers' default."""
        if self.optimizer is None:
            self.optimizer = self.first_optimizer()
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Without it: schedules of torch, floors, decay steps and a resumed schedule with another length would not
        exist."""
        if self.lr_scheduler is None:
            self.lr_scheduler = self.first_scheduler(num_training_steps, optimizer or self.optimizer)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _prepare_for_training(self, *arguments: Any, **options: Any) -> tuple[nn.Module, Any]:
        """Without it: an optimizer state from an earlier run would be lost, and every step would walk all modules."""
        model, loader = super()._prepare_for_training(*arguments, **options)
        self.prepare_steps(model)
        return model, loader

    def set_initial_training_values(self, *arguments: Any, **options: Any) -> Any:
        """Without it: a resumed run with another batch size would end after the wrong number of epochs."""
        return self.count_from_position(super().set_initial_training_values(*arguments, **options))

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        """Returns (epochs done, micro-batches done in the next). Without it: a resumed run would count batches, which
        are other samples if the batch size has changed, and would log and save as the checkpoint's arguments say."""
        with checkpoint_load_errors(resume_from_checkpoint), no_argument_comparison():
            progress = super()._init_training_state(
                max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
            )
        return self.resume_progress(max_steps, progress, resume_from_checkpoint is not None)

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """Without it: optimizer, schedule and averaged weights would be those of an earlier model."""
        model = super().call_model_init(trial)
        self.adopt_model(model, self.args)
        return model

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Without it: every micro-batch walks all parameters to count them."""
        name = self.model.main_input_name if self.flops_per_input else None
        return self.flops_per_input * inputs[name].numel() if name in inputs else 0

    # ---- batches ----

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Without it: the order of samples would depend on the process's RNG state, not on seed and epoch alone."""
        return self.train_sampler(train_dataset, super()._get_train_sampler)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """Without it: `eval_shuffle` would have no effect."""
        if self.settings.eval_shuffle:
            return SeededOrder(len(eval_dataset), self.args.seed)
        return super()._get_eval_sampler(eval_dataset)

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Any = None,
        is_training: bool = False,
        **options: Any,
    ) -> Any:
        """Without it: worker seeds would come from the generator of dropout, and evaluation would drop samples."""

        def build(dataset: Any) -> Any:
            return super(HFOverrides, self)._get_dataloader(
                dataset, description, batch_size, sampler_fn, is_training, **options
            )

        return self.train_dataloader(dataset, build) if is_training else self.eval_dataloader(dataset, build)

    def _get_collator_with_removed_columns(self, data_collator: Callable, description: str | None = None) -> Callable:
        """Without it: `remove_unused_columns` would expect lists of dicts, not whole batches."""
        if not self.args.remove_unused_columns:
            return data_collator
        self._set_signature_columns_if_needed()
        return partial(collate_named_keys, data_collator, frozenset(self._signature_columns))

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """Without it: waiting for data would be counted as training time, and no batch would be transformed."""
        meter = self.meter
        began = meter.clock()
        if meter.began is None:
            meter.began = began
        self.step_samples.clear()
        if self.recorder is not None:
            epoch_iterator = self.recorder.noted(epoch_iterator, self.step_samples)
        if self.settings.train_transform is not None:
            epoch_iterator = self.transformed(epoch_iterator)
        batches = super().get_batch_samples(epoch_iterator, num_batches, device)
        meter.waited_s += meter.clock() - began
        return batches

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Any:
        """Without it: only the labels of transformers' own models would be counted, and any other loss would be a mean
        over micro-batches, which weighs items by the size of their micro-batch."""
        self.shares = self.step_shares(batch_samples, device)
        if self.has_own_loss or self.compute_loss_func is not None:
            return super()._get_num_items_in_batch(batch_samples, device)
        return self.shares

    # ---- one step ----

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Without it: nobody would know which samples a step that is not finite was made of."""
        indices = self.step_samples.popleft() if self.step_samples else None
        self.samples += len(indices) if indices else find_batch_size(inputs) or 0
        changed = (self._tr_loss, self.followed_loss, *self.running_statistics)
        if self.guard.begin(indices, *changed) and self.train_terms.sums:
            self.train_terms.mark()
        self.share = {} if self.shares is WHOLE_STEP else self.shares.next()
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.share is not None:  # a subclass has computed its loss without `compute_loss` below
            self.share = None
            self.guard.note(loss)
        self.followed_loss += loss
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Without it: named loss terms would not be logged, and a loss that is not finite would reach the weights."""
        share, self.share = self.share, None
        if self.settings.loss is not None:
            outputs = outputs_with_loss(model, inputs, self.settings.loss)
            loss = outputs["loss"]
        else:  # without the number of items it is a mean over this micro-batch
            count = num_items_in_batch if self.compute_loss_func is not None else None
            loss, outputs = super().compute_loss(model, inputs, True, count)
        if share is not None:  # not an evaluation
            self.current_gradient_accumulation_steps = 1  # the share is all that the loss is divided by
            loss = self.share_of_step(loss, outputs, {} if self.compute_loss_func is not None else share)
        return (loss, outputs) if return_outputs else loss

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor:
        """Without it: clipping walks all modules in every step to find the parameters."""
        if self.walks is None:
            return super()._clip_grad_norm(model)
        self.accelerator.unscale_gradients()
        return nn.utils.clip_grad_norm_(self.walks.trained_parameters(), self.args.max_grad_norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Called right before `optimizer.step()`: records the norm, and skips the update if it is not finite (see
        `Trainer.before_update`). Without it: one NaN gradient destroys the weights."""
        if grad_norm is None and self.walks is not None:
            self.accelerator.unscale_gradients()
            grad_norm = nn.utils.get_total_norm([parameter.grad for parameter in self.walks.trained_parameters()])
        return self.before_update(super()._get_grad_norm(model, grad_norm=grad_norm))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Without it: loss terms, throughput and skipped steps would be missing from the log, and skipped steps would
        count in its mean loss."""
        super().log(self.completed_log(logs), start_time)

    # ---- the end of a step ----

    def _run_epoch(
        self, *, model: nn.Module, epoch: int, train_dataloader: Any, start_time: float, **options: Any
    ) -> None:
        """Without it: a resumed run would repeat or lose what a preempted step still had to do."""
        self.finish_step(model, epoch, start_time)
        if self.control.should_training_stop:
            return
        self.recorder = recorder_of(train_dataloader)
        if self.recorder is not None:
            self.recorder.record_next_pass()
        loop = {"model": model, "epoch": epoch, "train_dataloader": train_dataloader, "start_time": start_time}
        with start_by_position(start_at):
            super()._run_epoch(**loop, **options)

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
        """Without it: a preempted run would not stop at the end of a step, and a run that is shorter than
        `logging_steps` would log no loss."""
        if self.state.global_step >= self.state.max_steps and self.args.logging_strategy == "steps":
            self.control.should_log |= not any("loss" in entry for entry in self.state.log_history)
        run = partial(
            super()._maybe_log_save_evaluate,
            tr_loss,
            grad_norm,
            model,
            trial,
            epoch,
            ignore_keys_for_eval,
            start_time,
            learning_rate,
        )
        if self.has_boundary_work():
            self.end_step(run, grad_norm, learning_rate)
        else:
            run()

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Without it: checkpoints would be written in place, without manifest, and pickled."""
        self.save_checkpoint()

    def _get_output_dir(self, trial: Any) -> str:
        """Without it: `checkpointing.dirpath` would have no effect."""
        return str(self.checkpoint_dir) if trial is None else super()._get_output_dir(trial)

    def _finalize_training(self, trial: Any, num_train_samples: int, start_time: float) -> Any:
        """Without it: work left by a run that was preempted at its last step would be lost."""
        self.finish_last_step(start_time)
        with no_deletion_at_end():
            return super()._finalize_training(trial, num_train_samples, start_time)

    # ---- evaluation ----

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Without it: there would be no loss unless the batch's target is called `labels`, and no named terms."""
        inputs = self._prepare_inputs(inputs)
        loss, outputs = self.predict_batch(model, dict(inputs) if isinstance(inputs, Mapping) else inputs)
        if self.eval_scores is not None:
            self.eval_scores.add(inputs, loss, outputs)
        if prediction_loss_only:
            return None, None, None
        shown = loss if "loss" in self.args.include_for_metrics else None  # for `compute_metrics`
        return shown, self.predictions(outputs, loss is not None, ignore_keys), self.labels_of(inputs)

    def evaluation_loop(self, dataloader: Any, *arguments: Any, metric_key_prefix: str = "eval", **options: Any) -> Any:
        """Without it: an evaluation would be a mean over batches, without named loss terms and the data's metrics."""
        run = partial(super().evaluation_loop, dataloader, *arguments, metric_key_prefix=metric_key_prefix, **options)
        return self.with_scores(run, dataloader, metric_key_prefix)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Without it: averaged weights would not be evaluated, and several sets would have no common loss."""
        return self.evaluate_sets(super().evaluate, eval_dataset, ignore_keys, metric_key_prefix)

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> dict[str, float]:
        """Without it: plateau schedules could not follow any metric, and an evaluation before a resume would count."""
        run = partial(super()._evaluate, trial, ignore_keys_for_eval, skip_scheduler)
        return self.evaluate_in_training(run, skip_scheduler)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Whether to save after an evaluation with `save_strategy: best`. Without it: `val/loss` would not be found as
        `eval_loss`, a missing metric would be a KeyError, and a save that somebody has requested would be forgotten."""
        wanted = self.args.metric_for_best_model
        name = None if wanted is None else metric_or_error(wanted, metrics, "metric_for_best_model")
        with replaced(self.args, "metric_for_best_model", name):
            return super()._determine_best_metric(metrics, trial) or self.control.should_save

    # ---- files ----

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Without it: the final model would lack its processor files and come with pickled arguments."""
        self.save_final_model(output_dir, state_dict)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Without it: sharded weights would be saved in accelerate's own format."""
        if self.is_unsharded:
            super().save_model(output_dir, _internal_call)
        else:
            self._save(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Without it: adapters, quantized and sharded weights would not be loaded as they were saved."""
        default = partial(super()._load_from_checkpoint, resume_from_checkpoint, model)
        self.load_weights(Path(resume_from_checkpoint), default)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Without it: state would be read from pickles, and missing state would be ignored."""
        if checkpoint is not None:
            self.load_training_state(Path(checkpoint))

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Without it: the state of the float16 loss scaler would be read from a pickle."""
        scaler = getattr(self.accelerator, "scaler", None)
        if checkpoint is not None and scaler is not None:
            with checkpoint_load_errors(checkpoint):
                scaler.load_state_dict(state_dict_io.read(Path(checkpoint), "scaler"))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Without it: RNG states would be read from a pickle, and restored again after a resumed evaluation."""
        if checkpoint is not None and self.rng_restore_pending:
            with checkpoint_load_errors(checkpoint):
                restore_rng(Path(checkpoint), self.args, self.state.global_step)

    def _load_best_model(self) -> None:
        """Without it: a corrupted best checkpoint would end the run at its last step."""
        self.load_best_checkpoint()
