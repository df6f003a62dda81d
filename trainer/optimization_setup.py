"""Build and check the optimizer, the schedule and the position in the data: a part of `Trainer`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import has_length

from trainer.callbacks.metric_names import required_direction
from trainer.checkpointing.trainer_io import check_shapes, checkpoint_load_errors
from trainer.dataloading.dataloaders import KEY as POSITION
from trainer.dataloading.dataloaders import DataPosition, stored_position
from trainer.optimization.lr_curves import LRSchedulerConfig
from trainer.optimization.lr_scheduler import Schedule, check_plan, schedule_lines
from trainer.optimization.optimizers import build_optimizer, changed_options, load_earlier_state
from trainer.optimization.parameter_groups import group_rates, parameter_groups
from trainer.serialization import state_dict_io

OPTIMIZATION = (  # fields of TrainingArguments
    "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "optim", "optim_args",
    "optim_target_modules", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "max_steps", "num_train_epochs",
    "per_device_train_batch_size", "gradient_accumulation_steps", "dataloader_drop_last",
)  # fmt: skip


class OptimizationSetup:
    """What a run is optimized with, from its settings and, on resume, from its checkpoint."""

    def adopt_model(self, model: nn.Module, args: Any) -> None:
        """Build what belongs to one model: its optimizer, schedule and averaged weights."""
        spec = self.settings.ema
        self.ema = None
        if spec is not None:
            from trainer.optimization.ema import AveragedWeights

            self.ema = AveragedWeights(model, spec.decay, spec.warmup, spec.update_every)
        if self.train_dataset is not None:
            self.build_optimization(model, args)

    def new_optimizer(self, model: nn.Module, args: Any) -> torch.optim.Optimizer:
        """Build the named optimizer, or that of `optimizer_cls_and_kwargs`, over the model's parameter groups."""
        settings = self.settings
        if self.optimizer_cls_and_kwargs is not None:
            kind, options = self.optimizer_cls_and_kwargs
            rate, decay = options.get("lr", args.learning_rate), options.get("weight_decay", args.weight_decay)
            return kind(self.groups_of(model, rate, decay), **options)
        return build_optimizer(
            model,
            self.optimizer_name,
            settings.optimizer_options,
            args=args,
            specs=settings.param_groups,
            parts=settings.parts,
            layer_decay=settings.layer_decay,
        )

    def groups_of(self, model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """The optimizer's groups over a model at these rates; see `parameter_groups`."""
        settings = self.settings
        return parameter_groups(
            model, learning_rate, weight_decay, settings.param_groups, settings.parts, settings.layer_decay
        )

    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return run_length(self.args, self._samples_per_epoch(self.train_dataset, self.args))[0]

    def check_resumable(self, checkpoint: Path) -> None:
        """Check that the run can resume from a checkpoint, and compare its optimizer with this run's.

        Raises:
            ValueError: other parameter groups, another schedule, or weights of another shape.
        """
        settings, optimizer, schedule = self.settings, self.built_optimizer, self.built_schedule
        with checkpoint_load_errors(checkpoint):  # another version of transformers may have written other keys
            TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        stored = state_dict_io.read(checkpoint, "scheduler")
        if len(stored.get("base_lrs", ())) != len(optimizer.param_groups):
            raise ValueError(
                f"{checkpoint} was trained with {len(stored.get('base_lrs', ()))} parameter groups, this run has "
                f"{len(optimizer.param_groups)}; set back what is trained and how"
            )
        schedule.plan = self.plan
        with checkpoint_load_errors(checkpoint, reraise=(ValueError,)):
            schedule.load_state_dict(stored)
        if self.adapted is None or not self.adapted.has_constant_weights:
            check_shapes(checkpoint, self.model.state_dict())
        if settings.earlier_optimizer is not None:
            earlier = settings.earlier_optimizer.build(self.model, self.args, settings.parts)
            self.changed_options = changed_options(earlier.param_groups, self.initial_groups)

    def build_optimization(self, model: nn.Module, args: Any) -> None:
        """Build the optimizer and the schedule, before the run's folder is made.

        Raises:
            ValueError: a name, an option or a parameter group does not fit; a package that one needs is missing.
        """
        self.built_for = model, _optimization_arguments(args)
        self.optimizer_name = self.settings.optimizer_name or getattr(args.optim, "value", args.optim)
        if self.settings.schedule is None:
            self.plan = with_direction(plan_of(args), self.settings.directions)
        check_plan(self.plan)
        total, per_epoch = run_length(args, self._samples_per_epoch(self.train_dataset, args))
        warm = self.plan.warmup_length(total, per_epoch)
        if warm >= total:
            raise ValueError(
                f"the warm-up of {warm} steps is not shorter than the run of {total}; the learning rate would never "
                "be reached"
            )
        try:
            optimizer = self.given_optimizer if self.given_optimizer is not None else self.new_optimizer(model, args)
            self.built_optimizer = optimizer
            self.initial_groups = [dict(group) for group in optimizer.param_groups]
            if self.settings.first_optimizer is not None:
                load_earlier_state(optimizer, self.settings.first_optimizer)
            self.built_schedule = Schedule(optimizer, self.plan, total, per_epoch)
        except (TypeError, ValueError, ImportError, RuntimeError, NotImplementedError) as error:
            if isinstance(error, ValueError) and "`" in str(error):
                raise  # Keel's own error: it names what is wrong
            where = f"optimizer `{self.optimizer_name}` or schedule `{self.plan.name}`"
            raise ValueError(f"{where} cannot be built: {' '.join(str(error).split())}") from error

    def first_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer that was built with the Trainer, or a new one if the model or the arguments are others now."""
        if self.built_for != (self.model, _optimization_arguments(self.args)):
            self.build_optimization(self.model, self.args)
        return self.built_optimizer

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
        """How the steps of this run count through the data, continued from those of a checkpoint."""
        samples = self._samples_per_epoch(self.train_dataset, self.args)
        batch = self._train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
        passes = None if has_length(self.train_dataset) else 0
        now = DataPosition(self.steps_per_epoch, samples, batch, passes=passes)
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
            if batches and self.position.passes is not None and self.is_world_process_zero():
                print(f"training data without length: {batches} batches are read again and skipped", flush=True)
            if self.settings.forget_best:
                self.state.best_metric = self.state.best_global_step = self.state.best_model_checkpoint = None
        self.state.stateful_callbacks[POSITION] = dataclasses.asdict(self.position)
        return epochs, batches

    def end_pass(self) -> None:
        """At the end of an epoch of data without length, which is one pass over it, note where the next one begins."""
        if self.position.passes is not None:
            passes, step = self.position.passes + 1, self.state.global_step
            self.position = dataclasses.replace(self.position, passes=passes, pass_began=step)
            self.state.stateful_callbacks[POSITION] = dataclasses.asdict(self.position)

    def first_scheduler(self, total_steps: int, optimizer: Any) -> Schedule:
        """The schedule that was built with the Trainer, or a new one if the run has another length or optimizer now."""
        schedule, self.built_schedule = self.built_schedule, None
        unwrapped, length = getattr(optimizer, "optimizer", optimizer), (total_steps, self.steps_per_epoch)
        if (
            schedule is None
            or schedule.optimizer is not unwrapped
            or (schedule.total_steps, schedule.steps_per_epoch) != length
        ):
            schedule = Schedule(optimizer, self.plan, *length)
        schedule.steps_before = self.position.steps_before
        if self.resuming_from is None:
            self._show_schedule(schedule)
        return schedule

    def _show_schedule(self, schedule: Any) -> None:
        if self.is_world_process_zero() and isinstance(schedule, Schedule):
            print("\n".join(schedule_lines(schedule)), flush=True)

    def follow_training_loss(self) -> None:
        """At the end of each step or epoch, pass the mean training loss since the last call to a plateau schedule; the
        mean is over the steps that were not skipped."""
        self.followed_steps += 1 - self.skipped_update * 1  # an int, or a tensor that is still on the device
        every = self.steps_per_epoch if self.plan.interval == "epoch" else 1
        if self.state.global_step % every == 0:
            loss = self._mean_over_processes(self.followed_loss / self.followed_steps).item()
            self.lr_scheduler.observe(loss)
            self.followed_loss.zero_()
            self.followed_steps = 0

    def learning_rates(self) -> dict[str, float]:
        """Parameter name -> peak learning rate of its group; frozen parameters are left out.

        In a resumed run, `resume_lr` replaces the learning rate of the run.
        """
        settings, args = self.settings, self.args
        changed = self.is_resuming and settings.resume_lr is not None
        rate = settings.resume_lr if changed else args.learning_rate
        return group_rates(self.model, self.groups_of(self.model, rate, args.weight_decay))

    def use_batch_size(self, size: int) -> None:
        """Set the number of samples per device and micro-batch, which changes the length of the schedule."""
        self.args.per_device_train_batch_size = self._train_batch_size = size
        length = run_length(self.args, self._samples_per_epoch(self.train_dataset, self.args))
        self.built_for = self.model, _optimization_arguments(self.args)
        self.built_schedule = Schedule(self.built_optimizer, self.plan, *length)


def _optimization_arguments(args: Any) -> str:
    """Everything in `args` that the optimizer and the schedule are built from."""
    return repr([getattr(args, name, None) for name in OPTIMIZATION])


def updates_per_epoch(args: Any, samples: int) -> int:
    """Optimizer steps in an epoch of this many samples; every process makes the same number."""
    full, rest = divmod(samples, args.train_batch_size)
    batches = full if args.dataloader_drop_last else full + (rest > 0)
    own = batches // args.world_size if args.dataloader_drop_last else math.ceil(batches / args.world_size)
    return max(1, math.ceil(own / args.gradient_accumulation_steps))


def run_length(args: Any, samples: int) -> tuple[int, int]:
    """Optimizer steps of the whole run, and of an epoch of this many samples."""
    per_epoch = updates_per_epoch(args, samples)
    return args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch), per_epoch


def with_direction(plan: LRSchedulerConfig, directions: Mapping[str, str] | None) -> LRSchedulerConfig:
    """A plateau schedule follows its metric in the direction that the metric declares, unless `mode` is given.

    Raises:
        ValueError: the direction is neither given nor known.
    """
    if plan.monitor is None or not plan.follows_metric or "mode" in plan.options:
        return plan
    mode = required_direction(plan.monitor, None, directions, "scheduler")
    return dataclasses.replace(plan, options={**plan.options, "mode": mode})


def plan_of(args: Any) -> LRSchedulerConfig:
    """The schedule that TrainingArguments alone describe."""
    return LRSchedulerConfig(
        name=getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type),
        options=dict(args.lr_scheduler_kwargs or {}),
        warmup_steps=args.warmup_steps,
        learning_rate=args.learning_rate,
    )
