"""`Trainer`: transformers' own, with only what it lacks.

Batches are dicts; the model's `forward(**batch)` returns a dict with `loss` and, where it has several, `losses`: named
scalars that are averaged into the log as `loss_<name>`.

This file has the construction of the Trainer, its hooks and its log. In other files: `hf_overrides` (all methods that
transformers calls), `optimization_setup`, `dataloading`, `evaluation`, `step_boundary`, `checkpointing`.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerCallback

from storage import manifest
from trainer.callbacks.early_stopping import EarlyStopping
from trainer.callbacks.hooks import EveryNEpochs, FollowTrainingLoss, Hooks, UpdateAverages
from trainer.callbacks.log_files import Console, LogFile, MetricsFile, ProgressBar, check_appendable, write_files
from trainer.callbacks.metric_names import check_directions, monitors
from trainer.callbacks.model_checkpoint import ModelCheckpoint
from trainer.callbacks.throughput import ThroughputMonitor, TimedSteps, flops_per_sample
from trainer.callbacks.user_callbacks import named_callbacks
from trainer.checkpointing.contents import NOTHING_PENDING, restore_log_interval
from trainer.checkpointing.manager import CheckpointManager
from trainer.checkpointing.trainer_io import checkpoint_load_errors
from trainer.dataloading.dataloaders import DataPosition, without_adapter
from trainer.dataloading.samplers import RecordedBatches
from trainer.distributed import (
    DEEPSPEED_LINE,
    check_launch,
    check_sharding,
    explain_first_step,
    wants_fsdp,
)
from trainer.evaluation import EvaluationInterrupted
from trainer.hf_overrides import HFOverrides
from trainer.hf_patches import (
    cache_package_lookups,
    connect_peft,
    enable_fsdp_on_cpu,
    replaced,
)
from trainer.loss_terms import WHOLE_STEP, LossMeter, LossTerms, StepShares, scaled
from trainer.module_walks import ModuleWalks
from trainer.optimization.nonfinite_guard import NonfiniteGuard, running_statistics
from trainer.optimization.parameter_groups import no_decay_lines
from trainer.optimization_setup import plan_of, with_direction
from trainer.preemption import Preempted, Signals
from trainer.settings import TrainerSettings
from trainer.step_boundary import EPOCH, STEP

UNSHARDED = ("NO", "MULTI_GPU", "MULTI_CPU")  # every process holds all parameters whole


class Trainer(HFOverrides):
    """Trains `model` and keeps the run's folder.

    Args:
        model: Returns a dict with `loss`.
        args: TrainingArguments, read when training begins.
        data_collator: List of samples (or what the data set's `__getitems__` returns) -> batch.
        train_dataset: Map-style or iterable; None: the Trainer only evaluates.
        sampler: `sampler(seed)` -> an index sampler with `set_epoch`; its order is a function of seed and epoch, so
            that a resumed run sees the samples the uninterrupted one would have seen. None: transformers' own.
        files: Saved beside the model in every checkpoint: file name -> text or JSON value.
        settings: Everything else that a run asks for.
        adapted: Saves and loads the model's files, `save(folder, state_dict, final)` and `load(folder)`; None:
            transformers' own way.
        signals: Handlers of the signals that preempt the run; None: it cannot be preempted.
        callbacks, optimizers, options: These and all further arguments are those of transformers' Trainer.

    Raises:
        ValueError: a setting does not fit the model, the data or the installed packages.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        args: transformers.TrainingArguments | None = None,
        data_collator: Callable[[Any], Any] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *,
        sampler: Callable[[int], Any] | None = None,
        files: Mapping[str, Any] | None = None,
        settings: TrainerSettings | None = None,
        adapted: Any = None,
        signals: Signals | None = None,
        callbacks: Sequence[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        **options: Any,
    ):
        args = transformers.TrainingArguments("tmp_trainer") if args is None else args
        self.settings, self.adapted, self.signals = settings or TrainerSettings(), adapted, signals
        self.sampler, self.files = sampler, dict(files or {})
        self.checkpoint_dir = Path(self.settings.checkpoint_dir or args.output_dir)
        self.plan = with_direction(self.settings.schedule or plan_of(args), self.settings.directions)
        check_directions(self.settings, args)
        self.train_dataset, self.given_optimizer = train_dataset, optimizers[0]
        self.optimizer_cls_and_kwargs = options.get("optimizer_cls_and_kwargs")
        if model is not None:  # that of `model_init` is adopted when it is made
            self.adopt_model(model, args)
        self._begin_state()
        users = [callback() if isinstance(callback, type) else callback for callback in callbacks or ()]
        users += named_callbacks(self.settings.callbacks)
        connect_peft()
        super().__init__(
            model, args, data_collator, train_dataset, eval_dataset,
            callbacks=users, optimizers=optimizers, **options,
        )  # fmt: skip
        self._limit_evaluation()
        self.checkpointing = CheckpointManager(self, self.settings.save_in_background, self.settings.max_failed_saves)
        self.set_loss_terms()
        self._add_callbacks(users)

    def set_loss_terms(self) -> None:
        """Find out what the loss of the model is a mean over."""
        loss = self.settings.loss if self.settings.loss is not None else without_adapter(self.model)
        is_outside = self.label_smoother is not None or self.compute_loss_func is not None
        self.loss_terms = LossTerms(loss, uses_labels=is_outside)
        self.has_own_loss = type(self).compute_loss is not HFOverrides.compute_loss  # of a subclass
        if not self.has_own_loss:  # transformers must not divide a loss that has its share of the step
            self.model_accepts_loss_kwargs = True

    def _begin_state(self) -> None:
        """Initialize the state that training changes."""
        self.train_terms, self.eval_scores = LossMeter(), None
        self.may_interrupt = False  # whether a preemption may leave the evaluation that runs now
        self.recorder: RecordedBatches | None = None  # of the loader that the loop reads
        self.step_samples: deque[list[int] | None] = deque()  # of the micro-batches of a step that are still to come
        self.shares, self.share = WHOLE_STEP, None
        self.guard = NonfiniteGuard(
            self.settings.stop_after_nonfinite,
            self.checkpoint_dir,
            where=getattr(self.train_dataset, "where", None),
            finish_saving=lambda: self.checkpointing.wait_written(),
            clip_threshold=self.settings.grad_clip_threshold,
        )
        self.meter: ThroughputMonitor | None = None
        self.walks: ModuleWalks | None = None
        self.flops_per_input = 0
        self.skipped_update: bool | torch.Tensor = False
        self.running_statistics: list[torch.Tensor] = []  # a skipped step must not change them either
        self.steps_per_epoch, self.followed_steps, self.samples, self.measured_from = 1, 0, 0, 0
        self.resumed_from: str | None = None
        self.resuming_from: Path | None = None
        self.position = DataPosition(1, 1, 1)
        self.changed_options: list[dict[str, Any]] | None = None  # of each parameter group, since the checkpoint
        self.new_length: int | None = None  # total steps of a resumed run whose length has changed
        self.rng_restore_pending = False  # RNG states are restored where the resumed run continues
        self.pending_work = NOTHING_PENDING  # of the step at which a resumed run was preempted
        self.phase, self.is_unsharded = STEP, True
        self.locks: Sequence[Any] = ()  # locks of the folders that are written to
        self.is_resuming = False  # set before the first learning rates are shown

    def check_launch(self) -> None:
        check_launch(self.args)
        if wants_fsdp(self.args):
            enable_fsdp_on_cpu()

    def check_sharding(self) -> None:
        self.is_unsharded = self.accelerator.distributed_type in UNSHARDED
        if not self.is_unsharded:
            check_sharding(self.accelerator, self.settings, self.adapted)
            if self.is_deepspeed_enabled and self.is_world_process_zero():
                print(DEEPSPEED_LINE, flush=True)

    def _add_callbacks(self, users: Sequence[TrainerCallback]) -> None:
        """Add callbacks in the order of calls: log files, requests of evaluations, reactions to their results, and
        last those of the user, which transformers has added already."""
        settings, args = self.settings, self.args
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)
        self.add_callback(Hooks(self))
        if self.ema is not None:
            self.add_callback(UpdateAverages(self))
        if self.plan.follows_training_loss:
            self.add_callback(FollowTrainingLoss(self))
        self.add_callback(MetricsFile(Path(args.output_dir) / "metrics.jsonl"))
        if settings.csv_dir is not None:
            from trainer.callbacks.csv_logger import CsvLog

            self.add_callback(CsvLog(settings.csv_dir))
        if settings.benchmark_train_step:
            self.add_callback(TimedSteps(self.log_beside))
        if (settings.check_val_every_n_epoch or 1) > 1:
            self.add_callback(EveryNEpochs(settings.check_val_every_n_epoch))
        if settings.early_stopping is not None:
            self.add_callback(EarlyStopping(settings.early_stopping, settings.min_epochs, settings.directions))
        delete = self.checkpointing.deletions.delete
        self.model_checkpoint = ModelCheckpoint(
            settings.checkpointing, self.checkpoint_dir, args.save_total_limit, delete, settings.directions
        )
        self.add_callback(self.model_checkpoint)
        if settings.sampling is not None:
            from trainer.callbacks.text_samples import WriteSamples

            self.add_callback(WriteSamples(self.model, settings.sampling, Path(args.output_dir), args.seed))
        if settings.score_checkpoint is not None:
            from trainer.checkpoint_scores import EvaluateCheckpoints

            self.add_callback(EvaluateCheckpoints(settings.score_checkpoint, self.checkpoint_dir))
        callbacks = self.callback_handler.callbacks
        callbacks[:] = [callback for callback in callbacks if callback not in users] + list(users)
        followed = [name for _, name, _ in monitors(settings, args)]
        self.add_callback((Console if args.disable_tqdm else ProgressBar)(followed))

    # ---- training ----

    def prepare_steps(self, model: nn.Module) -> None:
        """Prepare optimizer and model for the first step.

        Args:
            model: As it is trained, perhaps wrapped (DDP, FSDP).
        """
        self.followed_loss = torch.zeros((), device=self.args.device)
        self.running_statistics = running_statistics(model)
        if self.settings.no_decay_verbose and self.is_world_process_zero():
            print("\n".join(no_decay_lines(self.model)), flush=True)
        if self.is_fsdp_enabled:
            explain_first_step(self.optimizer, self.optimizer_name)
        if hasattr(self.model, "num_parameters"):
            self.flops_per_input = 6 * self.model.num_parameters(exclude_embeddings=True)
        if self.is_unsharded:
            self.walks = ModuleWalks(model)
            cache_package_lookups()

    def before_update(self, norm: Any) -> Any:
        """Record the gradient norm, and skip the coming optimizer step if it is not finite; returns the norm."""
        self.skipped_update = False
        if self.is_deepspeed_enabled:  # its engine has made the update already
            self.guard.pass_over()
            return norm
        if not self.is_unsharded:  # decided on the host: no fused kernel is known to skip sharded weights
            norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        self.skipped_update = self.guard.before_update(self.state.global_step + 1, self.optimizer, norm)
        if self.train_terms.sums:
            self.train_terms.undo(self.skipped_update)
        return norm

    def step_shares(self, batches: Sequence[Mapping[str, Any]], device: torch.device) -> StepShares:
        """Count the items of an optimizer step over its micro-batches and all processes."""

        def sum_over_processes(items: torch.Tensor) -> torch.Tensor:
            return self.accelerator.reduce(items.to(device), reduction="sum")

        if len(batches) * self.args.world_size <= 1:
            return WHOLE_STEP
        items = [self.loss_terms.items(batch) for batch in batches]
        for counts, samples in zip(items, self.step_samples, strict=False):
            if samples == []:  # the batch only keeps this process in step
                counts |= {name: torch.zeros_like(count) for name, count in counts.items()}
        return StepShares.of(items, self.args.world_size, sum_over_processes)

    def share_of_step(self, loss: torch.Tensor, outputs: Any, shares: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """A micro-batch's part of the step's loss, guarded against values that are not finite.

        Args:
            loss: Mean over the micro-batch.
            shares: See `StepShares`; empty if the micro-batch is the whole step.
        """
        named = outputs.get("losses") if isinstance(outputs, Mapping) else None
        if shares:
            means = self.loss_terms.terms(loss, outputs)
            loss = self.loss_terms.total({name: scaled(mean, shares[name]) for name, mean in means.items()})
        if named:
            self.train_terms.add(named, shares)
        return self.guard.protect(loss, named)

    def begin_training(self) -> None:
        """Restore the sums of a resumed run's unfinished log interval, after transformers has set its own to zero."""
        self.measured_from = self.state.global_step
        if self.resumed_from is not None:
            with checkpoint_load_errors(self.resumed_from):
                restore_log_interval(self, self.resumed_from)
            self.resumed_from = None

    def has_boundary_work(self) -> bool:
        """Whether this step has anything to do at its end; asked at every step, so it reads plain attributes only.

        That is a log line, an evaluation or a save that is due; a background save to poll; a signal or a lost lock to
        react to; other ranks to agree with.
        """
        control, checkpointing, signals = self.control, self.checkpointing, self.signals
        return (
            control.should_log
            or control.should_evaluate
            or control.should_save
            or checkpointing.saving_state is not None
            or checkpointing.consensus.group is not None
            or (signals is not None and signals.received is not None)
            or any(lock.lost for lock in self.locks)
        )

    def end_epoch(self) -> None:
        self.phase = EPOCH
        self.end_pass()

    def begin_epoch(self) -> None:
        """Set the seed of the dataloader's workers, a function of seed and epoch."""
        self.phase = STEP
        generator = getattr(self.callback_handler.train_dataloader, "generator", None)
        if generator is not None:
            generator.manual_seed((self.args.seed << 20) + int(self.state.epoch or 0))

    # ---- logs ----

    def completed_log(self, logs: dict[str, float]) -> dict[str, float]:
        """Return a log entry of training with its loss terms, gradient norm, skipped steps and throughput."""
        if "loss" in logs:
            factor, counts = self.guard.take()
            logs["loss"] *= factor
            logs |= {f"loss_{name}": value for name, value in self.train_terms.take(self._mean_over_processes).items()}
            logs |= counts
            if self.meter is not None:
                steps = self.state.global_step - self.measured_from
                logs |= self.meter.take(steps, self.samples * self.args.world_size)
                self.samples, self.measured_from = 0, self.state.global_step
            self._log_units(logs)
            logs["weight_decay"] = max(group.get("weight_decay", 0.0) for group in self.optimizer.param_groups)
        return logs

    def _log_units(self, logs: dict[str, float]) -> None:
        """Units trained on so far, such as tokens, and per second; and what the data derives from the loss."""
        steps = self.state.global_step + self.position.steps_before
        samples = steps * self._train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
        for name, per_sample in self.settings.units.items():
            logs[name] = samples * per_sample
            if "samples_per_second" in logs:
                logs[f"{name}_per_second"] = round(logs["samples_per_second"] * per_sample, 1)
        if "train" in self.settings.metrics:
            logs |= self.settings.metrics["train"].compute(logs["loss"])

    def log_beside(self, logs: dict[str, float]) -> None:
        """Log a separate record; a log line that is due at this step stays due."""
        due = self.control.should_log
        self.log(logs)
        self.control.should_log = due

    def _mean_over_processes(self, values: torch.Tensor) -> torch.Tensor:
        return self.accelerator.reduce(values.to(self.args.device), reduction="mean")

    # ---- training ----

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, **options: Any) -> Any:
        if self.train_dataset is None:
            raise ValueError("there are no training data: this Trainer can only evaluate and predict")
        checkpoint = self.checkpoint_to_resume(resume_from_checkpoint)
        self.is_resuming, self.resuming_from = checkpoint is not None, checkpoint
        self.model_checkpoint.limit = self.args.save_total_limit
        self.samples = 0
        self.meter = ThroughputMonitor(self.args.device, flops_per_sample(self.model), self.args.world_size)
        deferred = self.signals.deferred() if self.signals is not None else contextlib.nullcontext()
        evaluates_first = self.settings.validate_before_resume if checkpoint is not None else self.args.eval_on_start
        try:
            with deferred, replaced(self.args, "eval_on_start", evaluates_first):
                outcome = super().train(str(checkpoint) if checkpoint is not None else None, **options)
            self.guard.settle()
            return outcome
        except Preempted:
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, (TensorBoardCallback, MetricsFile)):  # write what they have not yet
                    callback.on_train_end(self.args, self.state, self.control)
            raise
        except EvaluationInterrupted:  # of the one before the first step
            raise Preempted(self.signals.received or "another process", self.state.global_step) from None
        finally:
            self.checkpointing.close()
            if self.walks is not None:
                self.walks.remove()
            self.walks = self.meter = None
            self.guard.release(self.optimizer)

    def begin_run_folder(self, adaptation: Any = None) -> None:
        """Write run.yaml and the other small files before the first step, so that an aborted run is documented.

        Args:
            adaptation: JSON value of adaptation.json, which checkpoints get with the model's files.

        Raises:
            ValueError: a log file of the run cannot be appended to.
            OSError: the folder cannot be written to.
        """
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, LogFile):
                check_appendable(callback.path)
        more = {} if adaptation is None else {"adaptation.json": adaptation}
        (Path(self.args.output_dir) / manifest.NAME).unlink(missing_ok=True)  # of a final model that this run replaces
        write_files(Path(self.args.output_dir), {**self.files, **more})
