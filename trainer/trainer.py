"""`Trainer`: transformers' own, with only what it lacks.

Batches are dicts; the model's `forward(**batch)` returns a dict with `loss` and, where it has several, `losses`: named
scalars that are averaged into the log as `loss_<name>`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from storage import manifest

from . import state_files
from .callbacks import Console, MetricsFile
from .checkpoint_writer import SavesFailed
from .checkpointing import Checkpointing, quietly_deferred, unfinished, write_weights
from .early_stopping import EarlyStopping
from .ema import AveragedWeights
from .first_optimizer import take_state
from .keep import KeepCheckpoints
from .launch import DEEPSPEED_LINE, check_launch, check_sharding, explain_first_step, honour_fsdp_on_cpu
from .limits import EveryNEpochs, eval_shuffle_sampler, limited_count, limited_dataset, limited_sampler
from .log_interval import load_interval
from .loggers import CsvLog
from .losses import NamedMeans
from .metric_names import metric_or_error
from .module_walks import restore_walks, spare_lookups, spare_walks
from .named_callbacks import named_callbacks
from .nonfinite import IndexedCollate, IndexedSamples, NonfiniteGuard
from .optimizers import build_optimizer, group_rates, no_decay_lines, parameter_groups
from .performance import GradientNormLog, StepMeter, TimedSteps, flops_per_sample
from .positions import KEY as POSITION
from .positions import Position, positions_instead_of_skipping, stored_position
from .preemption import IgnoringSignals, Preempted, Signals
from .resuming import OptimizerPlan, apply_changes, changed_options, uncompared
from .run_folder import is_evaluation, write_files
from .samples import WriteSamples
from .schedules import Schedule, SchedulePlan, check_plan, is_training_loss, schedule_lines
from .settings import Settings
from .sharded import is_divided, load_whole_weights, whole_weights

STEP, EPOCH = "step", "epoch"  # whose end it is
UNSHARDED = ("NO", "MULTI_GPU", "MULTI_CPU")  # every process holds all parameters whole


class Trainer(transformers.Trainer):
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
            finish_saving=lambda: self.checkpointing.finish(),
        )
        self.norms = GradientNormLog(self.settings.grad_clip_threshold)
        self.ema = _averaged_weights(model, self.settings.ema)
        self.meter: StepMeter | None = None
        self.clipped_parameters: list[nn.Parameter] | None = None
        self.skipped_update: bool | torch.Tensor = False
        self.steps_per_epoch, self.followed_steps, self.samples, self.measured_steps = 1, 0, 0, 0
        self.resumed_from: str | None = None
        self.resuming_from: Path | None = None
        self.position = Position(1, 1, 1)
        self.new_length: int | None = None  # steps, where a resumed run has been given others
        self.due: dict[str, Any] = {}  # what a resumed run's last step had still to do
        self.phase = STEP
        self.locks: Sequence[Any] = ()  # of the folders that are written to; `lost` where another run has one now
        self.is_resuming = False  # said by whoever knows, before the first rates are shown
        self.eval_on_start, self.save_total_limit = args.eval_on_start, args.save_total_limit
        args.save_total_limit = None  # `KeepCheckpoints` deletes: by step, never the newest or a best one
        super().__init__(
            model=model, args=args, data_collator=collate, train_dataset=train_dataset, eval_dataset=eval_dataset
        )
        self._limit_evaluation()
        self.checkpointing = Checkpointing(self, self.settings.save_in_background, self.settings.max_failed_saves)
        inner = _without_adapter(model)
        if not type(inner).__module__.startswith("transformers."):
            # `**context` in a forward means «what else the batch knows», not «num_items_in_batch scales my loss».
            self.model_accepts_loss_kwargs = getattr(inner, "accepts_loss_kwargs", False)
        self._add_callbacks()

    def create_accelerator_and_postprocess(self) -> None:
        check_launch(self.args)
        honour_fsdp_on_cpu(self.args)
        super().create_accelerator_and_postprocess()
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
        self.keep = KeepCheckpoints(settings.checkpointing, self.checkpoint_dir, self.save_total_limit)
        self.add_callback(self.keep)
        if settings.sampling is not None:
            self.add_callback(
                WriteSamples(self.model, settings.tokenizer, settings.sampling, Path(args.output_dir), args.seed)
            )
        for callback in named_callbacks(settings.callbacks):
            self.add_callback(callback)
        self.add_callback(Console(bar=not args.disable_tqdm))

    # ---- data ----

    def _samples_per_epoch(self, dataset: Any, args: transformers.TrainingArguments) -> int:
        whole = len(self.sampler(args.seed)) if self.sampler is not None and self.settings.shuffle else len(dataset)
        batch = args.train_batch_size * args.world_size
        share, drop_last = self.settings.limit_train_batches, args.dataloader_drop_last
        return limited_count(whole, share, batch, drop_last, "limit_train_batches")

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        if not self.settings.shuffle:
            sampler = torch.utils.data.SequentialSampler(dataset)
        elif self.sampler is None:
            sampler = super()._get_train_sampler(train_dataset)
        else:
            sampler = self.sampler(self.args.data_seed if self.args.data_seed is not None else self.args.seed)
        batch = self._train_batch_size * self.args.world_size
        return limited_sampler(sampler, self.settings.limit_train_batches, batch, self.args.dataloader_drop_last)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        if self.settings.eval_shuffle:
            return eval_shuffle_sampler(eval_dataset, self.args.seed)
        return super()._get_eval_sampler(eval_dataset)

    def _limit_evaluation(self) -> None:
        share, batch = self.settings.limit_val_batches, self.args.eval_batch_size * self.args.world_size
        if self.eval_dataset is None or (isinstance(share, float) and share == 1.0):
            return
        if isinstance(self.eval_dataset, dict):
            self.eval_dataset = {name: limited_dataset(each, share, batch) for name, each in self.eval_dataset.items()}
        else:
            self.eval_dataset = limited_dataset(self.eval_dataset, share, batch)

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Any = None,
        is_training: bool = False,
        **more: Any,
    ) -> Any:
        if is_training:
            indexed = IndexedSamples(dataset)
            loader = super()._get_dataloader(indexed, description, batch_size, sampler_fn, is_training, **more)
            return self._with_own_generator(loader)
        with self._evaluation_loader():
            loader = super()._get_dataloader(dataset, description, batch_size, sampler_fn, is_training, **more)
        return self._with_own_generator(loader)

    def _with_own_generator(self, loader: Any) -> Any:
        """A loader draws its workers' seed whenever it makes workers, which kept ones spare: not from the generator
        that dropout draws from, or a resumed run, which makes them anew, would go another way."""
        inner = getattr(loader, "base_dataloader", loader)
        inner.generator = torch.Generator().manual_seed(self.args.seed)
        inner.worker_init_fn = IgnoringSignals(inner.worker_init_fn)
        return loader

    @contextlib.contextmanager
    def _evaluation_loader(self) -> Iterator[None]:
        """Evaluation sees every sample, and may have workers of its own."""
        names = (
            "dataloader_multiprocessing_context",
            "dataloader_drop_last",
            "dataloader_num_workers",
            "dataloader_prefetch_factor",
            "dataloader_persistent_workers",
        )
        before = {name: getattr(self.args, name) for name in names}
        self.args.dataloader_drop_last = False
        if self.settings.eval_num_workers is not None:
            self.args.dataloader_num_workers = self.settings.eval_num_workers
        if not self.args.dataloader_num_workers:
            self.args.dataloader_prefetch_factor, self.args.dataloader_persistent_workers = None, False
            self.args.dataloader_multiprocessing_context = None
        try:
            yield
        finally:
            for name, value in before.items():
                setattr(self.args, name, value)

    def _get_collator_with_removed_columns(self, data_collator: Callable, description: str | None = None) -> Callable:
        """`remove_unused_columns` on whole batches: keys that the model's forward does not name are left out.

        Training batches also say which samples they hold.
        """
        if self.args.remove_unused_columns:
            data_collator = _OnlyNamedKeys(data_collator, frozenset(_forward_names(self.model)))
        return IndexedCollate(data_collator) if (description or "").lower() == "training" else data_collator

    def _run_epoch(self, *, model: nn.Module, epoch: int, start_time: float, **options: Any) -> None:
        self._finish_step(model, epoch, start_time)
        if self.control.should_training_stop:
            return
        with positions_instead_of_skipping():
            super()._run_epoch(model=model, epoch=epoch, start_time=start_time, **options)

    def _finish_step(self, model: nn.Module, epoch: int, start_time: float) -> None:
        """What a resumed run's last step had still to do when it was told to stop: see `stop_here`."""
        due, self.due = self.due, {}
        if not due:
            return
        known = (self._tr_loss, due["grad_norm"], model, None, epoch, None, start_time, due["learning_rate"])
        self.control.should_evaluate, self.control.should_save = due["evaluate"], due["save"]
        self._maybe_log_save_evaluate(*known)
        if due["epoch"]:
            self.control = self.callback_handler.on_epoch_end(self.args, self.state, self.control)
            self._maybe_log_save_evaluate(*known)
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        self.meter.started_step()
        began = time.perf_counter()
        batches = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.meter.waited(time.perf_counter() - began)
        return batches

    # ---- optimization ----

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = self.new_optimizer(self.model if model is None else model, self.args)
            if self.settings.no_decay_verbose and self.is_world_process_zero():
                print("\n".join(no_decay_lines(self.model)), flush=True)
        return self.optimizer

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
        steps = updates_per_epoch(self.args, self._samples_per_epoch(self.train_dataset, self.args))
        optimizer, stored = self.new_optimizer(self.model, self.args), state_files.read(checkpoint, "scheduler")
        if len(stored.get("base_lrs", ())) != len(optimizer.param_groups):
            raise ValueError(
                f"{checkpoint} was trained with {len(stored.get('base_lrs', ()))} parameter groups, this run has "
                f"{len(optimizer.param_groups)}; set back what is trained and how"
            )
        Schedule(optimizer, self.plan, self.total_steps(), steps).load_state_dict(stored)
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

    def set_initial_training_values(self, *arguments: Any, **options: Any) -> Any:
        values = super().set_initial_training_values(*arguments, **options)
        self.steps_per_epoch = max(1, values[1])
        self.position = self._position(self.resuming_from)
        if self.args.max_steps > 0 and self.position.steps_before:
            epochs = math.ceil((self.args.max_steps + self.position.steps_before) / self.steps_per_epoch)
            values = (epochs, *values[1:])
        return values

    def _position(self, checkpoint: Path | None) -> Position:
        """How this run's steps count through the data, after those of a checkpoint's run."""
        samples = self._samples_per_epoch(self.train_dataset, self.args)
        batch = self._train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
        now = Position(self.steps_per_epoch, samples, batch)
        step, earlier = stored_position(checkpoint) if checkpoint is not None else (0, None)
        return now if earlier is None else earlier.followed_by(now, step)

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        """(epochs done, micro-batches done in the next): of a resumed run by its samples, whatever its batches are."""
        with uncompared():
            epochs, batches = super()._init_training_state(
                max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
            )
        if resume_from_checkpoint is not None:
            # transformers takes up the checkpoint's settings with its state: those of now count.
            self.state.compute_steps(self.args, max_steps)
            self.state.train_batch_size = self._train_batch_size
            epochs, steps = self.position.place(self.state.global_step)
            batches = 0 if self.args.ignore_data_skip else steps * self.args.gradient_accumulation_steps
            if self.settings.forget_best:
                self.state.best_metric = self.state.best_global_step = self.state.best_model_checkpoint = None
        self.state.stateful_callbacks[POSITION] = dataclasses.asdict(self.position)
        return epochs, batches

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Schedule:
        if self.lr_scheduler is None:
            steps = self.steps_per_epoch
            self.lr_scheduler = Schedule(optimizer or self.optimizer, self.plan, num_training_steps, steps)
            self.lr_scheduler.steps_before = self.position.steps_before
            self._created_lr_scheduler = True
            if self.resuming_from is None:
                self._show_schedule()
        return self.lr_scheduler

    def _show_schedule(self) -> None:
        if self.is_world_process_zero() and isinstance(self.lr_scheduler, Schedule):
            print("\n".join(schedule_lines(self.lr_scheduler)), flush=True)

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

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: the stock estimate walks every parameter on every micro-step and knows only tokens."""
        return 0

    def _prepare_for_training(self, *arguments: Any, **options: Any) -> tuple[nn.Module, Any]:
        self.followed_loss = torch.zeros((), device=self.args.device)
        model, loader = super()._prepare_for_training(*arguments, **options)
        if self.settings.first_optimizer is not None and not self.is_resuming:
            take_state(self.optimizer, self.settings.first_optimizer)
        if self.is_fsdp_enabled:
            explain_first_step(self.optimizer, self.optimizer_name)
        if self.is_unsharded:
            spare_walks(model, self.model)
            spare_lookups()
            self.clipped_parameters = [each for each in model.parameters() if each.requires_grad]
        return model, loader

    @property
    def is_unsharded(self) -> bool:
        return self.accelerator.distributed_type in UNSHARDED

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor:
        """Clips in place and returns the norm before it; for unsharded parameters without a walk to find them."""
        if self.clipped_parameters is None:
            return super()._clip_grad_norm(model)
        self.accelerator.unscale_gradients()
        return nn.utils.clip_grad_norm_(self.clipped_parameters, self.args.max_grad_norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The norm, which is also where a step that is not finite is stopped: the optimizer's step comes next."""
        if grad_norm is None and self.clipped_parameters is not None:
            self.accelerator.unscale_gradients()
            gradients = [each.grad for each in self.clipped_parameters if each.grad is not None]
            grad_norm = nn.utils.get_total_norm(gradients)
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self.skipped_update = False
        if self.is_deepspeed_enabled:  # its engine has made the update already
            self.guard.pass_over()
            return norm
        if not self.is_unsharded:  # the host decides: no fused kernel has been seen to skip divided weights
            norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        self.norms.add(norm)
        self.skipped_update = self.guard.before_update(self.state.global_step + 1, self.optimizer, norm)
        self.train_terms.undo(self.skipped_update)
        return norm

    def begin_training(self) -> None:
        """The Trainer has set its sums to zero; those of a resumed run's unfinished log interval are taken up again."""
        if self.resumed_from is not None:
            load_interval(self, self.resumed_from)
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

    def during_evaluation(self) -> None:
        """After each batch of an evaluation: one that belongs to the training is left where that is told to stop."""
        if self.is_in_train and self.meter is not None and self.checkpointing.look():
            raise _EvaluationLeft

    # ---- losses ----

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        indices = inputs.pop(IndexedCollate.KEY, None)
        self.samples += 0 if indices is None else len(indices)
        if self.guard.begin(indices, self._tr_loss, self.followed_loss):
            self.train_terms.mark()
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.followed_loss += loss
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        terms = outputs.get("losses") if isinstance(outputs, dict) else None
        if model.training:
            loss = self.guard.protect(loss, terms)
            if terms:
                self.train_terms.add(terms)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """One evaluation batch: its loss, whatever the batch's target is called, and its named terms."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        terms = outputs.get("losses") if isinstance(outputs, dict) else None
        if self.eval_terms is not None and terms:
            names = sorted(terms)
            values = torch.stack([terms[name].detach().float() for name in names])
            # Each sample carries its batch's mean, so that a short last batch weighs what it should.
            gathered = self.gather_function(values.repeat(self.args.eval_batch_size, 1))
            self.eval_terms.append(
                dict(zip(names, gathered.double().sum(0).tolist(), strict=True)) | {"": len(gathered)}
            )
        return loss.detach().mean(), None, None

    # ---- evaluation ----

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
            with self._without(EarlyStopping, KeepCheckpoints):
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

    # ---- logs ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
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
        super().log(logs, start_time)

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
                if isinstance(each, TensorBoardCallback):  # it would lose what it has not written yet
                    each.on_train_end(self.args, self.state, self.control)
            raise
        except _EvaluationLeft:  # of the one before the first step
            raise Preempted(self.signals.received or "another process", self.state.global_step) from None
        finally:
            self.checkpointing.close()
            restore_walks(self.model_wrapped)
            self.clipped_parameters, self.meter = None, None
            if self.optimizer is not None:
                self.guard.release(self.optimizer)

    def begin_run_folder(self, adaptation: Any = None) -> None:
        """run.yaml and the other small files, before the first step: a run that dies still says what it was.

        Args:
            adaptation: JSON value of adaptation.json, which checkpoints have from elsewhere.
        """
        more = {} if adaptation is None else {"adaptation.json": adaptation}
        (Path(self.args.output_dir) / manifest.NAME).unlink(missing_ok=True)  # of a final model that this run replaces
        write_files(Path(self.args.output_dir), {**self.files, **more})

    # ---- checkpoints ----

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
        is_told, saves = self.checkpointing.look(), self.control.should_save
        evaluates = self.control.should_evaluate
        if is_told:
            self.control.should_evaluate = self.control.should_save = False
        try:
            with quietly_deferred(self.callback_handler):
                super()._maybe_log_save_evaluate(
                    tr_loss, grad_norm, model, trial, epoch, ignore_keys_for_eval, start_time, learning_rate
                )
        except _EvaluationLeft:
            is_told, saves = True, saves or self.control.should_save
        if is_told:
            self.stop_here(evaluates, saves, grad_norm, learning_rate)

    def stop_here(
        self, evaluates: bool, saves: bool, grad_norm: torch.Tensor | float | None, learning_rate: float | None
    ) -> None:
        """Saves the state and leaves.

        What is left of this step is done first when the run goes on: its evaluation, a save that follows from it, and
        the end of the epoch, if it was the epoch's last.

        Args:
            evaluates, saves: Whether an evaluation and a save are due.
            grad_norm, learning_rate: Of the step, for the log line of the epoch.

        Raises:
            Preempted: always.
        """
        step, is_epochs_end = self.state.global_step, abs(self.state.epoch - round(self.state.epoch)) < 1e-6
        due = {"evaluate": evaluates, "save": saves and evaluates, "epoch": is_epochs_end and self.phase == STEP}
        if any(due.values()):
            due |= {"grad_norm": None if grad_norm is None else float(grad_norm), "learning_rate": learning_rate}
        else:
            due = {}
        if evaluates:  # some sets of it may be evaluated and logged already
            begun = [each for each in self.state.log_history if each.get("step") == step and is_evaluation(each)]
            self.state.log_history = [each for each in self.state.log_history if each not in begun]
        with self._not_training():
            self.guard.settle()
            with contextlib.suppress(SavesFailed):
                self.checkpointing.save(due, is_stopgap=evaluates or not saves)
                self.checkpointing.settle()
        raise Preempted(self.signals.received or "another process", step, self.checkpointing.was_saved)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with self._not_training():
            self.guard.settle()
            self.checkpointing.save()

    def _finalize_training(self, trial: Any, num_train_samples: int, start_time: float) -> Any:
        if self.due:  # of the last epoch's last step: no epoch has begun
            self._finish_step(self.model_wrapped, int(self.state.epoch), start_time)
        self.checkpointing.settle()
        return super()._finalize_training(trial, num_train_samples, start_time)

    def weights(self) -> dict[str, Any]:
        """The model's state dict as its files hold it: averaged where weights are averaged.

        Divided weights are gathered on the first process, with the help of all; the others have none.
        """
        if self.is_deepspeed_enabled:
            return self.accelerator.get_state_dict(self.model_wrapped) or {}
        if not self.is_unsharded:
            return whole_weights(self.model, keep=self.args.should_save)
        state = self.model.state_dict()
        return state if self.ema is None else self.ema.in_place_of(state)

    def constant_weights(self) -> frozenset[int]:
        """`data_ptr()`s of the weights that nothing changes: those under an adapter, or quantized.

        A model's own frozen weights may follow the others in its forward, as a teacher's do.
        """
        if self.adapted is None or not self.adapted.has_constant_weights:
            return frozenset()
        return frozenset(each.data_ptr() for each in self.model.parameters() if not each.requires_grad)

    def write_model(self, folder: Path, weights: Mapping[str, torch.Tensor], final: Path) -> None:
        """The model, and beside it what is needed to use it again. No pickled arguments: run.yaml holds them.

        Args:
            folder: Written into.
            final: What `folder` will be called when it is ready.
        """
        if self.adapted is None:
            write_weights(self.model, folder, weights)
        else:
            self.adapted.save(folder, weights, final)
        if self.settings.tokenizer is not None:
            self.settings.tokenizer.save_pretrained(folder)
        write_files(folder, self.files)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """The model for use, not to go on from: `save_model` comes here."""
        if self.args.should_save or not self.is_unsharded:
            weights = self.weights() if state_dict is None else state_dict
        if self.args.should_save:
            folder = Path(output_dir if output_dir is not None else self.args.output_dir)
            self.checkpointing.save_final(folder, weights)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if self.is_unsharded:
            super().save_model(output_dir, _internal_call)
        else:
            self._save(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if is_divided(self.model):
            load_whole_weights(self.model, Path(resume_from_checkpoint))
        elif self.adapted is None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self.adapted.load(Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        self.checkpointing.restore(Path(checkpoint))
        self.resumed_from, self.due = checkpoint, unfinished(Path(checkpoint))
        self.guard.load(checkpoint)
        if self.ema is not None:
            self.ema.load(checkpoint)
        self._change_on_resume()
        self._show_schedule()

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self.checkpointing.restore_scaler(Path(checkpoint))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self.checkpointing.restore_random(Path(checkpoint))

    def _change_on_resume(self) -> None:
        """Options of the optimizer that are others now; `resume_lr` and `resume_weight_decay`: new bases for the groups
        that follow the run's own values."""
        earlier, rate, decay = (
            self.settings.earlier_optimizer,
            self.settings.resume_lr,
            self.settings.resume_weight_decay,
        )
        if earlier is not None:
            changes = changed_options(earlier, self._optimizer_plan(), self.model, self.args, self.settings.parts)
            apply_changes(self.optimizer, self.lr_scheduler, changes)
        if rate is None and decay is None:
            return
        new = parameter_groups(
            self.model,
            self.args.learning_rate if rate is None else rate,
            self.args.weight_decay if decay is None else decay,
            self.settings.param_groups,
            self.settings.parts,
        )
        of = {id(each): group for group in new for each in group["params"]}
        groups = [(group, of[id(group["params"][0])]) for group in self.optimizer.param_groups]
        if decay is not None:
            for group, fresh in groups:
                group["weight_decay"] = fresh["weight_decay"]
        if rate is not None:
            self.lr_scheduler.rebase([fresh["lr"] for _, fresh in groups])

    def _load_best_model(self) -> None:
        self.restore(self.state.best_model_checkpoint)

    def restore(self, checkpoint: str | Path) -> None:
        """The model as a checkpoint's files hold it: what its evaluation saw."""
        self._load_from_checkpoint(str(checkpoint))
        self.ema = None


class _EvaluationLeft(Exception):
    """The run was told to stop in the middle of an evaluation."""


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
        self.trainer.checkpointing.heed()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.phase = EPOCH

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.during_evaluation()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.after_update()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.after_step()


class _OnlyNamedKeys:
    """A collate function whose batches hold only the keys a forward names; picklable for loader workers."""

    def __init__(self, collate: Callable, names: frozenset[str]):
        self.collate, self.names = collate, names

    def __call__(self, samples: Any) -> dict[str, Any]:
        return {name: value for name, value in self.collate(samples).items() if name in self.names}


def updates_per_epoch(args: transformers.TrainingArguments, samples: int) -> int:
    """Optimizer updates that each process makes in an epoch of so many samples."""
    full, rest = divmod(samples, args.train_batch_size)
    batches = full if args.dataloader_drop_last else full + (rest > 0)
    own = batches // args.world_size if args.dataloader_drop_last else math.ceil(batches / args.world_size)
    return max(1, math.ceil(own / args.gradient_accumulation_steps))


def _forward_names(model: nn.Module) -> list[str]:
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [
        name
        for name, each in inspect.signature(_without_adapter(model).forward).parameters.items()
        if each.kind in named
    ]


def _without_adapter(model: nn.Module) -> nn.Module:
    """PEFT's wrapper passes everything on, so it is the model inside that says what it takes."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


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
