"""`Trainer`: transformers' own, with only what it lacks.

Batches are dicts; the model's `forward(**batch)` returns a dict with `loss` and, where it has several, `losses`: named
scalars that are averaged into the log as `loss_<name>`.

Here: what a Trainer is made of, its optimization, its losses and its log. In files of their own: how batches are loaded
(`loading`), evaluation (`evaluating`), a step's end and being told to stop (`stopping`), files (`state_on_disk`, with
`checkpointing`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerState

from storage import manifest
from trainer.callbacks.csv_logger import CsvLog
from trainer.callbacks.early_stopping import EarlyStopping
from trainer.callbacks.log_files import check_appendable, write_files
from trainer.callbacks.model_checkpoint import ModelCheckpoint
from trainer.callbacks.progress import Console, MetricsFile
from trainer.callbacks.text_samples import WriteSamples
from trainer.callbacks.throughput import GradientNormLog, StepMeter, TimedSteps, flops_per_sample
from trainer.callbacks.user_callbacks import named_callbacks
from trainer.checkpointing.load_errors import checkpoint_load_errors
from trainer.checkpointing.manager import CheckpointManager
from trainer.checkpointing.step_state import NOTHING_PENDING, restore_log_interval
from trainer.checkpointing.trainer_io import check_shapes
from trainer.dataloading.dataloaders import without_adapter
from trainer.dataloading.resume_position import KEY as POSITION
from trainer.dataloading.resume_position import DataPosition, stored_position
from trainer.dataloading.samplers import EveryNEpochs
from trainer.distributed.launch_checks import (
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
    restore_module_walks,
    skip_module_walks,
)
from trainer.loss_terms import NamedMeans
from trainer.optimization.ema import AveragedWeights
from trainer.optimization.hparam_changes import OptimizerPlan, changed_options
from trainer.optimization.lr_scheduler import Schedule, check_plan, schedule_lines
from trainer.optimization.lr_scheduler_config import SchedulePlan, is_training_loss
from trainer.optimization.nonfinite_guard import NonfiniteGuard
from trainer.optimization.optimizers import build_optimizer, group_rates, no_decay_lines, parameter_groups
from trainer.optimization.warm_start_optimizer import take_state
from trainer.preemption import Preempted, Signals
from trainer.serialization import state_dict_io
from trainer.settings import Settings
from trainer.step_boundary import EPOCH, STEP

UNSHARDED = ("NO", "MULTI_GPU", "MULTI_CPU")  # every process holds all parameters whole


class Trainer(HFOverrides):
    """Trains `model` and keeps the run's folder.

    Args:
        model: Returns a dict with `loss`.
        args: TrainingArguments.
        collate: List of samples (or what the data set's `__getitems__` returns) -> batch.
        sampler: `sampler(seed)` -> an index sampler with `set_epoch`; its order is a function of seed and epoch, so
            that a resumed run sees the samples the uninterrupted one would have seen. None: transformers' own.
        files: Saved beside the model in every checkpoint: file name -> text or JSON value.
        settings: Everything else that a run asks for.
        adapted: Saves and loads the model's files, `save(folder, state_dict, final)` and `load(folder)`; None:
            transformers' own way.
        signals: Tells the run to stop; None: nothing does.

    Raises:
        ValueError: a setting does not fit the model, the data or the installed packages.
    """

    def __init__(
        self,
        model: nn.Module,
        args: transformers.TrainingArguments,
        *,
        train_dataset: Any,
        eval_dataset: Any = None,
        collate: Callable[[Any], dict[str, Any]],
        sampler: Callable[[int], Any] | None = None,
        files: Mapping[str, Any] | None = None,
        settings: Settings | None = None,
        adapted: Any = None,
        signals: Signals | None = None,
    ):
        self.settings, self.adapted, self.signals = settings or Settings(), adapted, signals
        self.sampler, self.files = sampler, dict(files or {})
        self.optimizer_name = self.settings.optimizer_name or getattr(args.optim, "value", args.optim)
        self.plan = self.settings.schedule or _plan_of(args)
        self.checkpoint_dir = Path(self.settings.checkpoint_dir or args.output_dir)
        self.try_optimization(model, args, self._samples_per_epoch(train_dataset, args))
        self.train_terms, self.eval_terms = NamedMeans(), None
        self.guard = NonfiniteGuard(
            self.settings.stop_after_nonfinite,
            self.checkpoint_dir,
            where=getattr(train_dataset, "where", None),
            finish_saving=lambda: self.checkpointing.wait_written(),
        )
        self.norms = GradientNormLog(self.settings.grad_clip_threshold)
        self.ema = _averaged_weights(model, self.settings.ema)
        self.meter: StepMeter | None = None
        self.clipped_parameters: list[nn.Parameter] | None = None
        self.skipped_update: bool | torch.Tensor = False
        self.steps_per_epoch, self.followed_steps, self.samples, self.measured_steps = 1, 0, 0, 0
        self.resumed_from: str | None = None
        self.resuming_from: Path | None = None
        self.position = DataPosition(1, 1, 1)
        self.new_length: int | None = None  # steps, where a resumed run has been given others
        self.generators_are_due = False  # those of random numbers are still to be taken up where the run goes on
        self.pending_work = NOTHING_PENDING  # of a resumed run's last step
        self.phase = STEP
        self.locks: Sequence[Any] = ()  # of the folders that are written to; `lost` where another run has one now
        self.is_resuming = False  # said by whoever knows, before the first rates are shown
        self.eval_on_start, self.save_total_limit = args.eval_on_start, args.save_total_limit
        args.save_total_limit = None  # `ModelCheckpoint` deletes: by step, never the newest or a best one
        connect_peft()
        super().__init__(
            model=model, args=args, data_collator=collate, train_dataset=train_dataset, eval_dataset=eval_dataset
        )
        self._limit_evaluation()
        self.checkpointing = CheckpointManager(self, self.settings.save_in_background, self.settings.max_failed_saves)
        inner = without_adapter(model)
        if not type(inner).__module__.startswith("transformers."):
            # `**context` in a forward means «what else the batch knows», not «num_items_in_batch scales my loss».
            self.model_accepts_loss_kwargs = getattr(inner, "accepts_loss_kwargs", False)
        self._add_callbacks()

    def check_launch(self) -> None:
        check_launch(self.args)
        if wants_fsdp(self.args):
            enable_fsdp_on_cpu()

    def check_sharding(self) -> None:
        if not self.is_unsharded:
            check_sharding(self.accelerator, self.settings, self.adapted)
            if self.is_deepspeed_enabled and self.is_world_process_zero():
                print(DEEPSPEED_LINE, flush=True)

    def _add_callbacks(self) -> None:
        """In the order in which an event reaches them: what writes, what asks for evaluations, what decides on them."""
        settings, args = self.settings, self.args
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)
        self.add_callback(_Hooks(self))
        self.add_callback(MetricsFile(Path(args.output_dir) / "metrics.jsonl"))
        if settings.csv_dir is not None:
            self.add_callback(CsvLog(settings.csv_dir))
        if settings.benchmark_train_step:
            self.add_callback(TimedSteps(self.log_beside))
        if (settings.check_val_every_n_epoch or 1) > 1:
            self.add_callback(EveryNEpochs(settings.check_val_every_n_epoch))
        if settings.early_stopping is not None:
            self.add_callback(EarlyStopping(settings.early_stopping, settings.min_epochs))
        delete = self.checkpointing.deletions.delete
        self.model_checkpoint = ModelCheckpoint(
            settings.checkpointing, self.checkpoint_dir, self.save_total_limit, delete
        )
        self.add_callback(self.model_checkpoint)
        if settings.sampling is not None:
            self.add_callback(
                WriteSamples(self.model, settings.tokenizer, settings.sampling, Path(args.output_dir), args.seed)
            )
        for callback in named_callbacks(settings.callbacks):
            self.add_callback(callback)
        self.add_callback(Console(bar=not args.disable_tqdm))

    # ---- optimization ----

    def first_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        if self.settings.no_decay_verbose and self.is_world_process_zero():
            print("\n".join(no_decay_lines(self.model)), flush=True)
        return self.new_optimizer(model, self.args)

    def new_optimizer(self, model: nn.Module, args: transformers.TrainingArguments) -> torch.optim.Optimizer:
        """The named optimizer over the model's parameter groups."""
        settings = self.settings
        return build_optimizer(
            model,
            self.optimizer_name,
            settings.optimizer_options,
            args=args,
            specs=settings.param_groups,
            parts=settings.parts,
        )

    def _optimizer_plan(self) -> OptimizerPlan:
        return OptimizerPlan(self.optimizer_name, self.settings.optimizer_options, self.settings.param_groups)

    def total_steps(self) -> int:
        """Optimizer updates of the whole run."""
        args = self.args
        steps = updates_per_epoch(args, self._samples_per_epoch(self.train_dataset, args))
        return args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps)

    def try_going_on(self, checkpoint: Path) -> None:
        """Tries on throw-away objects whether schedule and groups can go on from a checkpoint.

        Raises:
            ValueError: they cannot.
        """
        with checkpoint_load_errors(checkpoint):  # another version of transformers may have written other keys
            TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        steps = updates_per_epoch(self.args, self._samples_per_epoch(self.train_dataset, self.args))
        optimizer, stored = self.new_optimizer(self.model, self.args), state_dict_io.read(checkpoint, "scheduler")
        if len(stored.get("base_lrs", ())) != len(optimizer.param_groups):
            raise ValueError(
                f"{checkpoint} was trained with {len(stored.get('base_lrs', ()))} parameter groups, this run has "
                f"{len(optimizer.param_groups)}; set back what is trained and how"
            )
        with checkpoint_load_errors(checkpoint, reraise=(ValueError,)):
            Schedule(optimizer, self.plan, self.total_steps(), steps).load_state_dict(stored)
        if self.adapted is None or not self.adapted.has_constant_weights:
            check_shapes(checkpoint, self.model.state_dict())
        if self.settings.earlier_optimizer is not None:
            earlier = self.settings.earlier_optimizer
            changed_options(earlier, self._optimizer_plan(), self.model, self.args, self.settings.parts)

    def try_optimization(self, model: nn.Module, args: transformers.TrainingArguments, samples: int) -> None:
        """Builds optimizer and schedule once to throw them away: what is wrong with them is said before the run's
        folder is made. `samples` are those of an epoch.

        Raises:
            ValueError: a name, an option or a parameter group does not fit; a package that one needs is missing.
        """
        check_plan(self.plan)
        steps = updates_per_epoch(args, samples)
        total = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps)
        warm = self.plan.warmup_length(total, steps)
        if warm >= total:
            raise ValueError(
                f"the warm-up of {warm} steps is not shorter than the run of {total}; the learning rate would never be "
                "reached"
            )
        try:
            optimizer = self.new_optimizer(model, args)
            if self.settings.first_optimizer is not None:
                take_state(optimizer, self.settings.first_optimizer)
            Schedule(optimizer, self.plan, total, steps)
        except (TypeError, ValueError, ImportError, RuntimeError, NotImplementedError) as error:
            if isinstance(error, ValueError) and "`" in str(error):
                raise  # ours: it names what is wrong
            where = f"optimizer `{self.optimizer_name}` or schedule `{self.plan.name}`"
            raise ValueError(f"{where} cannot be built: {' '.join(str(error).split())}") from error

    def count_from_position(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """Count the steps from the position in the data; of a run with `max_steps`, return another number of epochs.

        Args:
            values: transformers' (epochs, steps per epoch, …).
        """
        self.steps_per_epoch = max(1, values[1])
        with checkpoint_load_errors(self.resuming_from):
            self.position = self._position(self.resuming_from)
        if self.args.max_steps > 0 and self.position.steps_before:
            epochs = math.ceil((self.args.max_steps + self.position.steps_before) / self.steps_per_epoch)
            values = (epochs, *values[1:])
        return values

    def _position(self, checkpoint: Path | None) -> DataPosition:
        """How this run's steps count through the data, after those of a checkpoint's run."""
        samples = self._samples_per_epoch(self.train_dataset, self.args)
        batch = self._train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
        now = DataPosition(self.steps_per_epoch, samples, batch)
        step, earlier = stored_position(checkpoint) if checkpoint is not None else (0, None)
        return now if earlier is None else earlier.followed_by(now, step)

    def resume_progress(self, max_steps: int, progress: tuple[int, int], resumes: bool) -> tuple[int, int]:
        """Return (epochs done, micro-batches done in the next), for a resumed run by its samples.

        Args:
            progress: The same as transformers counts it, in batches.
        """
        epochs, batches = progress
        if resumes:
            # transformers takes over the checkpoint's arguments with its state: restore those of this run.
            self.state.compute_steps(self.args, max_steps)
            self.state.train_batch_size = self._train_batch_size
            epochs, steps = self.position.place(self.state.global_step)
            batches = 0 if self.args.ignore_data_skip else steps * self.args.gradient_accumulation_steps
            if self.settings.forget_best:
                self.state.best_metric = self.state.best_global_step = self.state.best_model_checkpoint = None
        self.state.stateful_callbacks[POSITION] = dataclasses.asdict(self.position)
        return epochs, batches

    def first_scheduler(self, total_steps: int, optimizer: Any) -> Schedule:
        schedule = Schedule(optimizer, self.plan, total_steps, self.steps_per_epoch)
        schedule.steps_before = self.position.steps_before
        if self.resuming_from is None:
            self._show_schedule(schedule)
        return schedule

    def _show_schedule(self, schedule: Any) -> None:
        if self.is_world_process_zero() and isinstance(schedule, Schedule):
            print("\n".join(schedule_lines(schedule)), flush=True)

    def shown_rate(self) -> float:
        """The learning rate at the height of the schedule: `resume_lr` where a resumed run has one."""
        new = self.settings.resume_lr if self.is_resuming else None
        return self.args.learning_rate if new is None else new

    def learning_rates(self) -> dict[str, float]:
        """Parameter name -> the rate of its group at the height of the schedule; frozen ones are not in it."""
        settings, args = self.settings, self.args
        groups = parameter_groups(
            self.model, self.shown_rate(), args.weight_decay, settings.param_groups, settings.parts
        )
        return group_rates(self.model, groups)

    def use_batch_size(self, size: int) -> None:
        """Samples per device and micro-batch, from now on."""
        self.args.per_device_train_batch_size = self._train_batch_size = size

    def prepare_steps(self, model: nn.Module) -> None:
        """Prepare optimizer and model for the first step.

        Args:
            model: As it is trained, perhaps wrapped (DDP, FSDP).
        """
        self.followed_loss = torch.zeros((), device=self.args.device)
        if self.settings.first_optimizer is not None and not self.is_resuming:
            take_state(self.optimizer, self.settings.first_optimizer)
        if self.is_fsdp_enabled:
            explain_first_step(self.optimizer, self.optimizer_name)
        if self.is_unsharded:
            skip_module_walks(model, self.model)
            cache_package_lookups()
            self.clipped_parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    @property
    def is_unsharded(self) -> bool:
        return self.accelerator.distributed_type in UNSHARDED

    def before_update(self, norm: Any) -> Any:
        """Record the gradient norm, and skip the coming optimizer step if it is not finite; returns the norm."""
        self.skipped_update = False
        if self.is_deepspeed_enabled:  # its engine has made the update already
            self.guard.pass_over()
            return norm
        if not self.is_unsharded:  # decided on the host: no fused kernel is known to skip sharded weights
            norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        self.norms.add(norm)
        self.skipped_update = self.guard.before_update(self.state.global_step + 1, self.optimizer, norm)
        self.train_terms.undo(self.skipped_update)
        return norm

    def begin_training(self) -> None:
        """The Trainer has set its sums to zero; those of a resumed run's unfinished log interval are taken up again."""
        if self.resumed_from is not None:
            with checkpoint_load_errors(self.resumed_from):
                restore_log_interval(self, self.resumed_from)
            self.resumed_from = None

    def begin_epoch(self) -> None:
        """The workers' seed follows from seed and epoch, whatever happened before."""
        generator = getattr(self.callback_handler.train_dataloader, "generator", None)
        if generator is not None:
            generator.manual_seed((self.args.seed << 20) + int(self.state.epoch or 0))

    def after_update(self) -> None:
        """What follows the weights: the averaged ones."""
        if self.ema is not None and self.skipped_update is not True:
            self.ema.update(self.state.global_step + 1)

    def after_step(self) -> None:
        """What follows the training loss: a plateau schedule that has no evaluation to follow."""
        self.measured_steps += 1
        schedule = self.lr_scheduler
        if not isinstance(schedule, Schedule) or not is_training_loss(schedule.needs_metric):
            return
        self.followed_steps += 1
        every = self.steps_per_epoch if self.plan.interval == "epoch" else 1
        if self.state.global_step % every == 0:
            schedule.observe(self._mean_over_processes(self.followed_loss / self.followed_steps).item())
            self.followed_loss.zero_()
            self.followed_steps = 0

    # ---- logs ----

    def completed_log(self, logs: dict[str, float]) -> dict[str, float]:
        """Return a log entry of training with its loss terms, gradient norm, skipped steps and throughput."""
        if "loss" in logs:
            steps = self.norms.steps
            factor, skipped = self.guard.take(steps)
            logs["loss"] *= factor
            logs |= {f"loss_{name}": value for name, value in self.train_terms.take(self._mean_over_processes).items()}
            logs |= {**self.norms.take(), **skipped}
            if self.meter is not None:
                logs |= self.meter.take(self.measured_steps, self.samples * self.args.world_size)
                self.samples = self.measured_steps = 0
            self._log_text(logs)
            logs["weight_decay"] = max((group.get("weight_decay", 0.0) for group in self._groups()), default=0.0)
        logs.pop("total_flos", None)
        return logs

    def _log_text(self, logs: dict[str, float]) -> None:
        """`tokens` trained on so far, tokens/s, and what the data says of the loss."""
        length = self.settings.tokens_per_sample
        if length is not None:
            batch = self._train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
            logs["tokens"] = (self.state.global_step + self.position.steps_before) * batch * length
            if "samples_per_second" in logs:
                logs["tokens_per_second"] = round(logs["samples_per_second"] * length, 1)
        if self.settings.metrics is not None:
            logs |= self.settings.metrics("train", logs["loss"])

    def log_beside(self, logs: dict[str, float]) -> None:
        """A record of its own; the log line that may be due at this step stays due."""
        due = self.control.should_log
        self.log(logs)
        self.control.should_log = due

    def _groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups if self.optimizer is not None else []

    def _mean_over_processes(self, values: torch.Tensor) -> torch.Tensor:
        return self.accelerator.reduce(values.to(self.args.device), reduction="mean")

    # ---- training ----

    def train(self, resume_from_checkpoint: str | None = None, **options: Any) -> Any:
        self.is_resuming = resuming = bool(resume_from_checkpoint)
        self.resuming_from = Path(resume_from_checkpoint) if resuming else None
        self.args.eval_on_start = self.settings.validate_before_resume if resuming else self.eval_on_start
        processes = self.args.world_size
        self.samples = self.measured_steps = 0
        self.meter = StepMeter(self.args.device, flops_per_sample(self.model), processes)
        deferred = self.signals.deferred() if self.signals is not None else contextlib.nullcontext()
        try:
            with deferred:
                outcome = super().train(resume_from_checkpoint=resume_from_checkpoint, **options)
            self.guard.settle()
            return outcome
        except Preempted:
            for each in self.callback_handler.callbacks:
                if isinstance(each, (TensorBoardCallback, MetricsFile, CsvLog)):  # write what they have not yet
                    each.on_train_end(self.args, self.state, self.control)
            raise
        except EvaluationInterrupted:  # of the one before the first step
            raise Preempted(self.signals.received or "another process", self.state.global_step) from None
        finally:
            self.checkpointing.close()
            restore_module_walks(self.model_wrapped)
            self.clipped_parameters, self.meter = None, None
            if self.optimizer is not None:
                self.guard.release(self.optimizer)

    def begin_run_folder(self, adaptation: Any = None) -> None:
        """run.yaml and the other small files, before the first step: a run that dies still says what it was.

        Args:
            adaptation: JSON value of adaptation.json, which checkpoints have from elsewhere.

        Raises:
            ValueError: something is in the place of a file that the run adds to.
            OSError: the folder cannot be written to.
        """
        for each in self.callback_handler.callbacks:
            if isinstance(each, (MetricsFile, CsvLog, WriteSamples)):
                check_appendable(each.path)
        more = {} if adaptation is None else {"adaptation.json": adaptation}
        (Path(self.args.output_dir) / manifest.NAME).unlink(missing_ok=True)  # of a final model that this run replaces
        write_files(Path(self.args.output_dir), {**self.files, **more})


class _Hooks(TrainerCallback):
    """Passes moments of the training on to the Trainer, which has no methods of its own for them."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.begin_training()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.begin_epoch()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.phase = STEP
        self.trainer.checkpointing.dispatch_on_save()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.phase = EPOCH

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.during_evaluation()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.after_update()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.after_step()


def updates_per_epoch(args: transformers.TrainingArguments, samples: int) -> int:
    """Optimizer updates that each process makes in an epoch of so many samples."""
    full, rest = divmod(samples, args.train_batch_size)
    batches = full if args.dataloader_drop_last else full + (rest > 0)
    own = batches // args.world_size if args.dataloader_drop_last else math.ceil(batches / args.world_size)
    return max(1, math.ceil(own / args.gradient_accumulation_steps))


def _averaged_weights(model: nn.Module, spec: Any) -> AveragedWeights | None:
    return None if spec is None else AveragedWeights(model, spec.decay, spec.warmup, spec.update_every)


def _plan_of(args: transformers.TrainingArguments) -> SchedulePlan:
    """The schedule that TrainingArguments alone describe."""
    return SchedulePlan(
        name=getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type),
        options=dict(args.lr_scheduler_kwargs or {}),
        warmup_steps=args.warmup_steps,
        learning_rate=args.learning_rate,
    )
