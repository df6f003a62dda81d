"""Train anything: flags and YAML -> RunConfig -> TrainingArguments -> data -> model -> adapted model -> Trainer."""

from __future__ import annotations

import sys

if __name__ == "__main__" and sys.argv[1:2] == ["--complete"]:  # at each press of the tab key: nothing else is imported
    from loader.command_line.completion import complete

    sys.exit(complete(sys.argv[2:]))

from trainer.preemption import Preempted, Signals, exit_on_signal, ignore_signals

if __name__ == "__main__":
    exit_on_signal()  # the imports that follow take seconds on a slow file system

import contextlib
import multiprocessing
import os
import signal
from dataclasses import fields, replace
from typing import Any

from loader.checks.launch import idle_gpu_lines
from loader.checks.runtime_checks import check_loggers, check_start, hub_reason, is_hub_error
from loader.command_line.entry import command_line, process_rank, refusing, run_config
from loader.errors import ConfigError
from loader.resolve.run_config import RunConfig, with_dims
from loader.resume.find_checkpoint import ResumePoint, check_no_new_checkpoints, find_on_rank0, set_aside_abandoned
from loader.schema.hyper_arguments import HyperArguments
from models.adapt.optional_imports import hide_kernel_warning
from prepare import start_sweep
from storage.checkpoints import sweep
from storage.lock import RunLock
from trainer.hf_patches import defer_peft, use_one_gpu

__all__ = ["HyperArguments", "main"]


def main(arguments: list[str] | None = None) -> Any:
    """Train as the command line describes; returns the Trainer, after the final model is saved in the run's folder.

    Raises:
        ConfigError: the configuration cannot be run; nothing was written.
        Preempted: a signal asked the run to end; its state is saved.
        TrainingDiverged, SavesFailed: the run cannot continue.
    """
    run = run_config(arguments, start_sweep)  # also answers --help, --check, --print_config, --print_schema
    with Signals() as signals:
        try:
            return execute(run, signals)
        except Preempted as preempted:
            if process_rank() == 0:
                print(preempted.line(run.wants_resume and run.resumes_newest), flush=True)
            raise


def execute(run: RunConfig, signals: Signals) -> Any:
    """Carry out a run. A preemption during set-up ends it at once, later as soon as its state is saved."""
    if run.memory is not None:
        from estimate import estimate_memory

        return estimate_memory(run)
    folders = dict.fromkeys((run.output_dir, run.checkpoint_dir)) if process_rank() == 0 else ()
    locks = [RunLock(folder) for folder in folders]
    for lock in locks:
        refusing(lock.check)
    # torch and transformers are imported only from here on, so that everything above answers at once.
    defer_peft()
    hide_kernel_warning()
    from transformers import set_seed
    from transformers.utils import logging

    from loader.output.training_arguments import training_arguments
    from prepare import build_data, with_prepared_data

    args = refusing(training_arguments, run)
    run.notes += idle_gpu_lines(run, use_one_gpu(args))
    if args.disable_tqdm:
        logging.disable_progress_bar()
    with args.main_process_first(local=True, desc="data preparation"):
        run = refusing(with_prepared_data, run)
        bundle = refusing(build_data, run)
    set_seed(run.seed)
    adapted = refusing(build_model, run, bundle, args)
    trainer = refusing(build_trainer, run, args, bundle, adapted, signals)
    prepare_and_train(run, trainer, bundle, adapted, locks)
    return trainer


def prepare_and_train(run: RunConfig, trainer: Any, bundle: Any, adapted: Any, locks: list[RunLock]) -> None:
    """Lock the run's folders, choose the checkpoint to resume from, train, and save the final model."""
    from trainer.callbacks.log_files import record_start

    with contextlib.ExitStack() as held:
        # Lock existing folders before choosing a checkpoint, so that no other run adds or deletes one in between.
        existing = [lock for lock in locks if lock.folder.is_dir()]
        for lock in existing:
            refusing(held.enter_context, lock)
        is_first, share = trainer.args.process_index == 0, trainer.checkpointing.consensus.broadcast_from_rank0
        point, skipped = refusing(find_on_rank0, run, is_first, share)
        trainer.is_resuming = point is not None
        refusing(choose_batch_size, run, trainer, point)
        changed = refusing(apply_changes_on_resume, run, trainer, bundle, adapted, point)
        rates = trainer.learning_rates()
        report, table = adapted.report(rates), adapted.table(rates)
        trainer.files["run.yaml"] = run_yaml(run, trainer, adapted)
        for lock in locks:
            if lock not in existing:
                refusing(held.enter_context, lock)
                refusing(check_no_new_checkpoints, run, lock.folder)
            sweep(lock.folder)
        trainer.locks = locks
        if trainer.is_world_process_zero():
            resumed = refusing(set_aside_abandoned, run, point, skipped)
            ema = "evaluating averaged weights (using_ema): they choose the best checkpoint and are the final model"
            model = [f"model: {run.model.name}", *adapted.lines, *[ema][: run.process.using_ema]]
            start = {"notes": run.notes, "resumed": resumed, "changed": changed, "data": bundle.summary, "model": model}
            print("\n".join([*(line for lines in start.values() for line in lines), *table]), flush=True)
            refusing(trainer.begin_run_folder, report)
            refusing(record_start, run.output_dir, point.step if point else 0, start)
        trainer.signals.check()
        with trainer.signals.deferred():
            train_and_save(run, trainer, point)


def train_and_save(run: RunConfig, trainer: Any, point: ResumePoint | None) -> None:
    """Train to the end of the run, unless the checkpoint already is its end, and save the final model."""
    from trainer.callbacks.metric_names import UnknownMetric
    from trainer.checkpointing.trainer_io import CheckpointLoadError
    from trainer.distributed import CannotDivide
    from trainer.evaluator import NothingScored

    try:
        if point and (reason := finished_reason(run, point, trainer.new_length)):
            if trainer.is_world_process_zero():
                print(f"{point.folder.name} {reason}: nothing is left to train", flush=True)
            trainer.finish_from(point.folder)
        else:
            trainer.train(resume_from_checkpoint=str(point.folder) if point else None)
            trainer.score_test()
        save_final_model(trainer)
        if trainer.is_world_process_zero():
            print(f"final model in {run.output_dir}", flush=True)
            if run.process.report:
                from report import write_report

                write_report(run.output_dir)
    except (UnknownMetric, NothingScored, CannotDivide, CheckpointLoadError) as error:
        raise ConfigError(str(error)) from error


def save_final_model(trainer: Any) -> None:
    """Save the final model into the run's folder; if the disk is full, the last checkpoint remains."""
    from trainer.checkpointing.async_writer import SavesFailed, is_storage_error

    try:
        trainer.save_model()
    except Exception as error:
        if is_hub_error(error):
            folder = trainer.args.output_dir
            raise SavesFailed(f"the final model is in {folder} but was not pushed: {hub_reason(error)}") from error
        if isinstance(error, SavesFailed) or not is_storage_error(error):
            raise
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise SavesFailed(
            f"the final model could not be written to {trainer.args.output_dir}: {reason}; make room and run the same "
            "command again with --resume_from_checkpoint auto"
        ) from error


def build_model(run: RunConfig, bundle: Any, args: Any) -> Any:
    """Build the network for the data's dimensions and adapt it: load weights, quantize, freeze, add LoRA."""
    from models.adapt import build_adapted

    half = "bfloat16" if args.bf16 else "float16" if args.fp16 else None
    config, on_gpu, process = with_dims(run, bundle.dims), args.device.type == "cuda", run.process
    if process.is_pretrained or process.load_pretrain:
        from loader.resume.find_checkpoint import earlier_folder

        process = replace(process, model_name_or_path=str(earlier_folder(run)))
    return build_adapted(run.model.module, config, process, autocast=half, on_gpu=on_gpu)


def build_trainer(run: RunConfig, args: Any, bundle: Any, adapted: Any, signals: Signals | None = None) -> Any:
    """Build the Trainer; a ValueError if data and settings do not fit each other."""
    from trainer.callbacks.metric_names import unknown_monitors
    from trainer.trainer import Trainer

    check_start(run, args, bundle, adapted.model)
    if run.logging is not None or "wandb" in args.report_to:
        from trainer.callbacks.csv_logger import LoggingConfig, logger_environment

        section, backends = (run.logging, args.report_to) if run.logging else (LoggingConfig(), ["wandb"])
        os.environ.update(logger_environment(section, run.output_dir, backends))
    check_loggers(args)
    sets, settings = bundle.eval_datasets, trainer_settings(run, bundle, adapted, args.device)
    if not run.callbacks:  # they may log metrics of their own
        for key, name, reason in unknown_monitors(settings, args, [*sets], settings.metrics):
            raise ValueError(f"`{key}: {name}`{run.place(key)} {reason}")
    try:
        return Trainer(
            adapted.model,
            args,
            train_dataset=bundle.train_dataset,
            eval_dataset=next(iter(sets.values())) if len(sets) == 1 else sets or None,
            data_collator=bundle.collate,
            sampler=None if args.train_sampling_strategy == "group_by_length" else bundle.sampler,
            files=bundle.files,
            settings=settings,
            adapted=adapted,
            signals=signals,
        )
    except OSError as error:
        if is_hub_error(error):
            raise ValueError(f"`push_to_hub: true`{run.place('push_to_hub')}: {hub_reason(error)}") from error
        place = run.place("output_dir")
        raise ValueError(f"`output_dir: {run.output_dir}`{place} cannot be made: {error.strerror}") from error


def trainer_settings(run: RunConfig, bundle: Any, adapted: Any, device: Any) -> Any:
    """Collect the Trainer's settings.

    Sections and process parameters that the Trainer has under the same name are passed through as they are.
    """
    from loader.resume.find_checkpoint import first_optimizer
    from prepare import build_loss
    from trainer.settings import EmaConfig, TrainerSettings

    names = {field.name for field in fields(TrainerSettings)}
    shared = {name: getattr(view, name) for view in (run.process, run) for name in names if hasattr(view, name)}
    own = {
        "optimizer_name": run.hyper.optim,
        "param_groups": [*run.param_groups, *adapted.groups],
        "parts": adapted.parts,
        "schedule": schedule_plan(run),
        "ema": (run.ema or EmaConfig()) if run.process.using_ema else None,
        "metrics": bundle.metrics_by_prefix(),
        "directions": bundle.directions(),
        "greater_is_better": run.trainer.get("greater_is_better"),
        "units": bundle.units,
        "loss": build_loss(run, bundle),
        "train_transform": bundle.train_transform,
        "test_datasets": bundle.test_sets_by_prefix() if run.process.evaluate_test else {},
        "processor": bundle.processor,
        "first_optimizer": first_optimizer(run),
    }
    if run.logging is not None and run.logging.logger_type == "CSVLogger":
        from trainer.callbacks.csv_logger import log_folder

        own["csv_dir"] = log_folder(run.logging, run.output_dir)
    if run.process.sample_tokens and bundle.eval_datasets:
        from data.text.generation import sampler_of

        own["sampling"] = sampler_of(run, bundle.processor, adapted.model)
    if run.eval_runner is not None and run.eval_runner.enabled:
        from eval import checkpoint_scores

        own["score_checkpoint"] = checkpoint_scores(run, bundle, own["loss"], device)
    return TrainerSettings(**shared | own)


def schedule_plan(run: RunConfig) -> Any:
    """The learning-rate schedule."""
    from loader.resolve.run_config import schedule_counts_epochs, warmup
    from trainer.optimization.lr_curves import LRSchedulerConfig

    return LRSchedulerConfig(
        name=run.hyper.lr_scheduler_type,
        options={**(run.trainer.get("lr_scheduler_kwargs") or {}), **run.scheduler},
        interval=run.schedule.interval or ("epoch" if schedule_counts_epochs(run) else "step"),
        frequency=run.schedule.frequency,
        monitor=run.schedule.monitor,
        warmup_steps=warmup(run),
        warmup_epochs=run.process.warmup_epochs,
        min_lr=run.hyper.min_lr,
        decay_steps=run.hyper.lr_decay_iters,
        learning_rate=run.hyper.learning_rate,
    )


def apply_changes_on_resume(
    run: RunConfig, trainer: Any, bundle: Any, adapted: Any, point: ResumePoint | None
) -> list[str]:
    """Pass what has changed since the checkpoint to the Trainer and to `resumed.json`; returns lines to print.

    Raises:
        ValueError: a change does not allow the run to resume.
    """
    from loader.resume.compatibility import kept_corruption, resized_context, resume_changes
    from loader.resume.config_diff import changed_data
    from trainer.dataloading.dataloaders import without_adapter
    from trainer.optimization.lr_scheduler import LengthError

    if point is None:
        return []
    changes = resume_changes(run, point, trainer.total_steps())
    if difference := changed_data(bundle.files, point.folder):
        changes.data(run, difference)
    if changes.problems:
        raise ConfigError(changes.problems)
    network = without_adapter(adapted.model)
    changes.lines += [*resized_context(run, network, bundle.dims, point), *kept_corruption(run, network, point)]
    settings = trainer.settings
    if changes.optimizer_changed:
        settings.earlier_optimizer = optimizer_plan(point.run, adapted)
    settings.forget_best = changes.best_changed
    trainer.plan = replace(trainer.plan, new_length=run.hyper.resume_schedule, takes_over=changes.schedule_changed)
    trainer.new_length = trainer.total_steps() if changes.length_setting else None
    if not finished_reason(run, point, trainer.new_length):
        try:
            trainer.check_resumable(point.folder)
        except LengthError as error:
            raise ValueError(f"{changes.length_setting}: {error}") from error
    if history := changes.history():
        trainer.files["resumed.json"] = history
    return changes.lines


def optimizer_plan(run: RunConfig, adapted: Any) -> Any:
    """The optimizer of an earlier run, for this run's model."""
    from trainer.optimization.optimizers import OptimizerPlan

    names = ("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon")
    arguments = {"optim_args": run.trainer.get("optim_args")} | {name: getattr(run.hyper, name) for name in names}
    groups = [replace(group, lr=run.process.lora_lr) for group in adapted.groups]
    specs, decay = [*run.param_groups, *groups], run.process.layer_decay
    return OptimizerPlan(run.hyper.optim, run.optimizer_options, specs, arguments, decay)


def choose_batch_size(run: RunConfig, trainer: Any, point: ResumePoint | None) -> None:
    """`tune_batch_size`: find the largest batch that fits; a resumed run keeps the size of its checkpoint."""
    if not run.process.tune_batch_size:
        return
    from trainer.batch_size_finder import tune_batch_size

    if point is not None:
        size = point.state["train_batch_size"]
    else:
        size = tune_batch_size(trainer, run.hyper.per_device_train_batch_size, 2**16)
    trainer.use_batch_size(size)


def run_yaml(run: RunConfig, trainer: Any, adapted: Any) -> str:
    """run.yaml: the configuration with its origins, after comments about what was chosen during set-up."""
    from loader.output import render

    effective = dict(adapted.effective)
    if run.process.tune_batch_size:
        effective["per_device_train_batch_size"] = str(trainer.args.per_device_train_batch_size)
    head = "".join(f"# effective: {name} {value}\n" for name, value in effective.items())
    return f"{head}{render.as_yaml(run)}{render.END}"


def finished_reason(run: RunConfig, point: ResumePoint, new_length: int | None = None) -> str | None:
    """Why a resumed run has nothing left to train: its last step is done, or it stopped early; None: it has."""
    from trainer.callbacks.early_stopping import already_stopped
    from trainer.checkpointing.contents import read_pending_work

    if read_pending_work(point.folder):
        return None
    if point.is_finished(new_length):
        return "is the run's last step"
    return already_stopped(point.folder, run.early_stopping) if run.early_stopping is not None else None


if __name__ == "__main__":
    try:
        command_line(main)
        from trainer.distributed import leave_process_group

        leave_process_group()
    finally:
        ignore_signals()  # a signal that arrives now must not change the exit code
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would report each worker that ends as a failure
        for child in multiprocessing.active_children():  # a worker that hangs in a dead mount ignores SIGTERM
            child.kill()
