"""Train anything: `python train.py --task_name TASK --training_config FILE --flag value …`.

Read top to bottom, this is a whole run: flags and YAML -> RunConfig -> TrainingArguments -> data -> model -> adapted ->
Trainer.
"""

from __future__ import annotations

from trainer.preemption import EXIT_CODE, Preempted, Signals, ignore_signals, leave_when_told

if __name__ == "__main__":
    leave_when_told()  # the imports that follow take seconds on a slow file system

import contextlib
import json
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from loader.checks.devices import idle_gpu_lines
from loader.checks.runtime_checks import check_batch, check_data, check_model
from loader.command_line.entry import CONFIG_ERROR, CRASHED, print_problems, process_rank, refusing, run_config_or_exit
from loader.errors import ConfigError
from loader.resolve.run_config import RunConfig, with_dims
from loader.resume.find_checkpoint import takes_newest, wants_resume
from loader.schema.hyper_arguments import HyperArguments
from models.adapt.optional_imports import hide_kernel_warning
from storage.checkpoints import checkpoints, recover, set_aside, sweep
from storage.lock import RunLock
from trainer.hf_patches import defer_peft, use_one_gpu

__all__ = ["HyperArguments", "main"]

OPTIMIZER_ARGUMENTS = ("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon")


def main(arguments: list[str] | None = None) -> Any:
    """Trains what the command line describes; returns the Trainer, its final model saved in the run's folder."""
    run = None
    with Signals() as signals:
        try:
            run = run_config_or_exit(arguments)  # also answers --help, --check, --print_config, --print_schema
            return carry_out(run, signals)
        except Preempted as left:
            if process_rank() == 0:
                print(left.line(run is not None and wants_resume(run) and takes_newest(run)), flush=True)
            raise SystemExit(EXIT_CODE) from None


def carry_out(run: RunConfig, signals: Signals) -> Any:
    """A whole run. Told to stop, it leaves at once while it is set up, and later when its state is saved."""
    folders = dict.fromkeys((Path(run.output_dir), run.checkpoint_dir)) if process_rank() == 0 else ()
    locks = [RunLock(folder) for folder in folders]
    for lock in locks:
        refusing(lock.check)
    # torch and transformers are imported from here on: what came before answers in a fraction of a second.
    defer_peft()
    hide_kernel_warning()
    from transformers import set_seed
    from transformers.utils import logging

    from loader.output.training_arguments import training_arguments
    from prepare import build_data, with_prepared_data

    args = refusing(training_arguments, run)
    run.notes += idle_gpu_lines(run, use_one_gpu(args))
    if args.disable_tqdm:
        logging.disable_progress_bar()  # loading and saving weights show one too
    with args.main_process_first(local=True, desc="data preparation"):
        run = refusing(with_prepared_data, run)
        bundle = refusing(build_data, run)
    set_seed(run.seed)
    adapted = refusing(build_model, run, bundle, args)
    trainer = refusing(build_trainer, run, args, bundle, adapted, signals)
    with contextlib.ExitStack() as held:
        # A folder that is there is held before a checkpoint of it is chosen: nobody adds or takes one in between.
        there = [lock for lock in locks if lock.folder.is_dir()]
        for lock in there:
            refusing(held.enter_context, lock)
        checkpoint, passed_over = refusing(chosen_checkpoint, run, trainer)
        trainer.is_resuming = checkpoint is not None
        refusing(settle_batch_size, run, trainer, checkpoint)
        changed = refusing(change_on_resume, run, trainer, bundle, adapted, checkpoint)
        rates = trainer.learning_rates()
        report, table = adapted.report(rates), adapted.table(rates)  # what is frozen, quantized, adapted, how it trains
        trainer.files["run.yaml"] = recorded(run, trainer, adapted)
        for lock in locks:
            if lock not in there:
                refusing(held.enter_context, lock)
                refusing(check_nobody_came, run, lock.folder)
            sweep(lock.folder)
        trainer.locks = locks
        if trainer.is_world_process_zero():
            begun = refusing(leave_other_courses, run, checkpoint, passed_over)
            print("\n".join([*run.notes, *begun, *changed, *told(run, bundle, adapted, table)]), flush=True)
            refusing(trainer.begin_run_folder, report)
        signals.check()
        with signals.deferred():
            train(run, trainer, checkpoint)
            save_final_model(trainer)
    if trainer.is_world_process_zero():
        print(f"final model in {run.output_dir}", flush=True)
    return trainer


def train(run: RunConfig, trainer: Any, checkpoint: Path | None) -> None:
    """Trains until the run's end, if it has not come to it already; the model is then what the run is kept for."""
    from trainer.callbacks.metric_names import UnknownMetric
    from trainer.checkpointing.async_writer import SavesFailed
    from trainer.checkpointing.load_errors import CheckpointLoadError
    from trainer.distributed.launch_checks import CannotDivide
    from trainer.optimization.nonfinite_guard import TrainingDiverged

    if checkpoint and (why := nothing_left(run, checkpoint, trainer.new_length)):
        if trainer.is_world_process_zero():
            print(f"{checkpoint.name} {why}: nothing is left to train", flush=True)
        trainer.finish_from(checkpoint)
        return
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except (UnknownMetric, CannotDivide, CheckpointLoadError) as error:
        print_problems([str(error)])
        raise SystemExit(CONFIG_ERROR) from error
    except (TrainingDiverged, SavesFailed) as error:
        print_problems([str(error)])
        raise SystemExit(CRASHED) from error


def save_final_model(trainer: Any) -> None:
    """Into the run's folder; a disk that will not take it costs nothing, since the last checkpoint stands."""
    from trainer.checkpointing.async_writer import SavesFailed, is_storage_error

    try:
        trainer.save_model()
    except SavesFailed as error:
        print_problems([str(error)])
        raise SystemExit(CRASHED) from error
    except Exception as error:
        if not is_storage_error(error):
            raise
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        print_problems(
            [
                f"the final model could not be written to {trainer.args.output_dir}: {reason}; make room and run the "
                "same command again with --resume_from_checkpoint auto"
            ]
        )
        raise SystemExit(CRASHED) from error


def chosen_checkpoint(run: RunConfig, trainer: Any) -> tuple[Path | None, dict[Path, str]]:
    """Where the run goes on, and which checkpoints it passes over, why: the first process reads every file, all take
    its word."""
    from loader.resume.find_checkpoint import chosen

    found: Any = None
    try:
        if trainer.args.process_index == 0:
            recover(run.checkpoint_dir)
            found = chosen(run, deep=True)
    except (ValueError, OSError) as error:
        found = error
    found = trainer.checkpointing.consensus.broadcast_from_rank0(found)
    if isinstance(found, (ValueError, OSError)):
        raise found
    return found


def check_nobody_came(run: RunConfig, folder: Path) -> None:
    """A folder that was not there when this run looked for checkpoints must hold none now that it is held."""
    if wants_resume(run) and checkpoints(folder):
        raise ValueError(
            f"another run has saved in {folder} while this one was set up; start it again to go on from there"
        )


def leave_other_courses(run: RunConfig, checkpoint: Path | None, passed_over: dict[Path, str]) -> list[str]:
    """Renames the checkpoints that this run does not go on from, lest they pass for its own later; says so."""
    from loader.resume.find_checkpoint import MODEL_ALONE, superseded

    lines = []
    for path, why in passed_over.items():
        name = set_aside(path, "superseded" if why == MODEL_ALONE else "damaged")
        lines.append(f"skipping {path.name}: it {why}; renamed {name}")
    if checkpoint is None:
        return lines
    lines.append(f"resuming from {checkpoint}")
    for path in superseded(run, checkpoint):
        name = set_aside(path, "superseded")
        lines.append(f"{path.name} is of the course that is left here: renamed {name}")
    return lines


def told(run: RunConfig, bundle: Any, adapted: Any, table: list[str]) -> list[str]:
    """What a run says of its data and its model before its first step."""
    return [*bundle.summary, f"model: {run.model.name}", *adapted.lines, *table]


def build_model(run: RunConfig, bundle: Any, args: Any) -> Any:
    """The network, built for the data's dimensions and adapted: weights loaded, quantized, frozen, LoRA."""
    from models.adapt import build_adapted

    half = "bfloat16" if args.bf16 else "float16" if args.fp16 else None
    config, on_gpu, process = with_dims(run, bundle.dims), args.device.type == "cuda", run.process
    if process.is_pretrained or process.load_pretrain:
        from loader.resume.warm_start import earlier_folder

        process = replace(process, model_name_or_path=str(earlier_folder(run)))
    return build_adapted(run.model.module, config, process, autocast=half, on_gpu=on_gpu)


def build_trainer(run: RunConfig, args: Any, bundle: Any, adapted: Any, signals: Signals | None = None) -> Any:
    """The Trainer of a run; a ValueError where data and settings do not fit one another."""
    from trainer.trainer import Trainer

    check_batch(run, args)
    check_data(run, args, bundle)
    check_model(run, args, adapted.model)
    if run.logging is not None:
        from trainer.callbacks.csv_logger import logger_environment

        os.environ.update(logger_environment(run.logging, run.output_dir, args.report_to))
    sets = bundle.eval_datasets
    try:
        return Trainer(
            adapted.model,
            args,
            train_dataset=bundle.train_dataset,
            eval_dataset=next(iter(sets.values())) if len(sets) == 1 else sets or None,
            collate=bundle.collate,
            sampler=bundle.sampler,
            files=bundle.files,
            settings=trainer_settings(run, bundle, adapted),
            adapted=adapted,
            signals=signals,
        )
    except OSError as error:
        place = run.place("output_dir")
        raise ValueError(f"`output_dir: {run.output_dir}`{place} cannot be made: {error.strerror}") from error


def trainer_settings(run: RunConfig, bundle: Any, adapted: Any) -> Any:
    """The RunConfig in the Trainer's words."""
    from loader.resume.warm_start import first_optimizer
    from trainer.callbacks.csv_logger import log_folder
    from trainer.settings import Settings

    process, logging = run.process, run.logging
    names = list(bundle.eval_datasets)

    def metrics(split: str, loss: float) -> dict[str, float]:
        return bundle.metrics(names[0] if split == "eval" else split, loss)

    wants_csv = logging is not None and logging.logger_type == "CSVLogger"
    return Settings(
        optimizer_name=run.hyper.optim,
        optimizer_options=run.optimizer_options,
        param_groups=[*run.param_groups, *adapted.groups],
        parts=adapted.parts,
        schedule=schedule_plan(run),
        no_decay_verbose=process.no_decay_verbose,
        ema=averaging(run),
        early_stopping=run.early_stopping,
        min_epochs=process.min_epochs,
        checkpointing=run.checkpointing,
        checkpoint_dir=run.checkpoint_dir,
        check_val_every_n_epoch=process.check_val_every_n_epoch,
        limit_train_batches=process.limit_train_batches,
        limit_val_batches=process.limit_val_batches,
        shuffle=process.shuffle,
        eval_shuffle=process.eval_shuffle,
        eval_num_workers=process.eval_num_workers,
        stop_after_nonfinite=process.stop_after_nonfinite,
        grad_clip_threshold=process.grad_clip_threshold,
        benchmark_train_step=process.benchmark_train_step,
        resume_lr=process.resume_lr,
        resume_weight_decay=process.resume_weight_decay,
        validate_before_resume=process.validate_before_resume,
        callbacks=run.callbacks,
        csv_dir=log_folder(logging, run.output_dir) if wants_csv else None,
        metrics=metrics if bundle.metrics is not None else None,
        tokens_per_sample=bundle.tokens_per_sample,
        tokenizer=bundle.tokenizer,
        sampling=sampling(run, bundle, adapted.model),
        first_optimizer=first_optimizer(run),
        save_in_background=process.save_in_background,
        max_failed_saves=process.max_failed_saves,
    )


def schedule_plan(run: RunConfig) -> Any:
    """The learning rate's course."""
    from loader.resolve.derived import schedule_counts_epochs, warmup
    from trainer.optimization.lr_scheduler_config import SchedulePlan

    return SchedulePlan(
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


def sampling(run: RunConfig, bundle: Any, model: Any) -> Any:
    """How samples are written in mid-training, or None; a ValueError where a prompt cannot be read or is too long."""
    from trainer.callbacks.text_samples import Sampling, prompt_ids, room_after

    process = run.process
    if not process.sample_tokens or not bundle.eval_datasets:
        return None
    if bundle.tokenizer is None:
        if run.on_command_line("sample_tokens"):
            place = run.place("sample_tokens")
            raise ValueError(
                f"`sample_tokens`{place}: this data has no single tokenizer to write text with; set it to 0"
            )
        run.notes.append("no samples: the data has no single tokenizer to write text with")
        return None
    chosen = Sampling(
        process.sample_tokens,
        process.sample_prompt,
        process.sample_count,
        process.sample_temperature,
        process.sample_top_k,
    )
    try:
        room_after(model, prompt_ids(bundle.tokenizer, process.sample_prompt), chosen)
    except ValueError:
        if run.was_set("sample_prompt"):
            raise
        chosen = replace(chosen, prompt=bundle.tokenizer.decode([0]))  # a vocabulary without a line's end
    return chosen


def averaging(run: RunConfig) -> Any:
    """The settings of the averaged weights, or None."""
    from trainer.sections import EmaConfig

    return (run.ema or EmaConfig()) if run.process.using_ema else None


def change_on_resume(run: RunConfig, trainer: Any, bundle: Any, adapted: Any, checkpoint: Path | None) -> list[str]:
    """What a resumed run was given otherwise than the run that wrote its checkpoint reaches the Trainer, and
    `resumed.json`; the lines that say so. A ValueError where the run may not go on."""
    from loader.resume.compatibility import resume_changes
    from loader.resume.warm_start import changed_data

    if checkpoint is None:
        return []
    changes = resume_changes(run, checkpoint, trainer.total_steps())
    if other := changed_data(bundle.files, checkpoint):
        changes.data(run, checkpoint, other)
    if changes.problems:
        raise ConfigError(changes.problems)
    earlier, settings = changes.earlier, trainer.settings
    if changes.optimizer_changed:
        settings.earlier_optimizer = optimizer_plan(earlier, adapted)
    settings.forget_best = changes.best_changed
    trainer.plan = replace(trainer.plan, new_length=run.hyper.resume_schedule, takes_over=changes.schedule_changed)
    trainer.new_length = trainer.total_steps() if changes.length_changed else None
    if not nothing_left(run, checkpoint, trainer.new_length):
        trainer.check_resumable(checkpoint)
    if history := changes.history(checkpoint):
        trainer.files["resumed.json"] = history
    return changes.lines


def optimizer_plan(run: RunConfig, adapted: Any) -> Any:
    """The optimizer of an earlier run over this run's model."""
    from trainer.optimization.hparam_changes import OptimizerPlan

    arguments = {name: getattr(run.hyper, name) for name in OPTIMIZER_ARGUMENTS}
    arguments["optim_args"] = run.trainer.get("optim_args")
    groups = [replace(each, lr=run.process.lora_lr) for each in adapted.groups]
    return OptimizerPlan(run.hyper.optim, run.optimizer_options, [*run.param_groups, *groups], arguments)


def settle_batch_size(run: RunConfig, trainer: Any, checkpoint: Path | None) -> None:
    """`tune_batch_size`: the largest batch that fits; a resumed run keeps the size of its checkpoint."""
    if not run.process.tune_batch_size:
        return
    from trainer.batch_size_finder import tune_batch_size

    if checkpoint is not None:
        size = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["train_batch_size"]
    else:
        size = tune_batch_size(trainer, run.hyper.per_device_train_batch_size, 2**16)
    trainer.use_batch_size(size)


def recorded(run: RunConfig, trainer: Any, adapted: Any) -> str:
    """run.yaml: the configuration with its origins, headed by what was chosen while the run was set up."""
    from loader.output import render

    effective = dict(adapted.effective)
    if run.process.tune_batch_size:
        effective["per_device_train_batch_size"] = str(trainer.args.per_device_train_batch_size)
    head = "".join(f"# effective: {name} {value}\n" for name, value in effective.items())
    return f"{head}{render.as_yaml(run)}{render.END}"


def nothing_left(run: RunConfig, checkpoint: Path, new_length: int | None = None) -> str | None:
    """Why a resumed run has nothing to train: its last step is done, or it had stopped early."""
    from loader.resume.find_checkpoint import finished
    from trainer.callbacks.early_stopping import already_stopped
    from trainer.checkpointing.step_state import read_pending_work

    if read_pending_work(checkpoint):
        return None
    if finished(checkpoint, new_length):
        return "is the run's last step"
    return already_stopped(checkpoint, run.early_stopping) if run.early_stopping is not None else None


if __name__ == "__main__":
    try:
        main()
    finally:
        ignore_signals()  # the exit code stands: what comes now comes too late
        # A loader's worker may hang in a dead mount, and hears no SIGTERM.
        for child in multiprocessing.active_children():
            child.kill()
