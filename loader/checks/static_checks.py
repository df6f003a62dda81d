"""What is known to be wrong before a GPU is touched: conflicts, paths, step arithmetic, keys nothing here can use."""

from __future__ import annotations

import os
from pathlib import Path

from loader.checks.devices import check_hardware
from loader.checks.launcher_env import check_environment
from loader.checks.plugin_names import check_names
from loader.checks.unused_keys import check_process_keys
from loader.errors import ConfigError, Problems, quoted
from loader.resolve.derived import TRAINING_METRICS, eval_strategy, holds_nothing_out, ignores_learning_rate, warmup
from loader.resolve.precedence import PLATEAUS, WITHOUT_HORIZON
from loader.resolve.run_config import RunConfig
from loader.resume.compatibility import resume_changes
from loader.resume.find_checkpoint import find_checkpoint, takes_newest, wants_resume
from loader.schema.components import shipped
from loader.schema.keys import keys_of, scalar_keys
from storage.checkpoints import checkpoints

# What marks a folder as the output of an earlier run. (run.yaml alone is left by a start that failed.)
RUN_FILES = ("metrics.jsonl", "config.json", "model.safetensors", "adapter_config.json")
MOST_OF_NAME = 255  # bytes of a file's name


def check_run(run: RunConfig) -> list[str]:
    """Every problem of a resolved run, one line each; an empty list means it may start."""
    problems = Problems()
    check_environment(run, problems)
    _length(run, problems)
    _strategies(run, problems)
    _rules(run, problems)
    _exclusions(run, problems)
    _horizons(run, problems)
    _optimizer_words(run, problems)
    _rates(run, problems)
    check_names(run, problems)
    check_process_keys(run, problems)
    check_hardware(run, problems)
    _components(run, problems)
    _output_dir(run, problems)
    return problems.lines


def _length(run: RunConfig, problems: Problems) -> None:
    hyper = run.hyper
    if hyper.max_steps == 0:
        problems.add(
            f"`max_steps: 0`{run.place('max_steps')} would train nothing; give a positive number, or -1 for epochs"
        )
    if hyper.num_train_epochs <= 0 and hyper.num_train_epochs != -1:
        problems.add(
            f"`num_train_epochs: {hyper.num_train_epochs:g}`{run.place('num_train_epochs')} must be greater than 0, or "
            "-1 to train until something stops it"
        )
    _endless(run, problems)
    for name in ("limit_train_batches", "limit_val_batches"):
        share = getattr(run.process, name)
        if isinstance(share, float) and share > 1:
            problems.add(
                f"`{name}: {share:g}`{run.place(name)} must be a share of at most 1.0, or a whole number of batches"
            )
    steps, warm = hyper.max_steps, warmup(run)
    if steps > 0 and warm >= steps and warm >= 1:
        problems.add(
            f"`warmup_steps: {warm:g}`{run.place('warmup_steps')} is not shorter than the run of {steps} steps"
            f" (`max_steps`{run.place('max_steps')}); the learning rate would never be reached"
        )
    if 1 <= warm != int(warm):
        problems.add(f"`warmup_steps: {warm:g}`{run.place('warmup_steps')} must be a whole number, or a share below 1")
    for name in ("logging_steps", "save_steps", "eval_steps"):
        value = getattr(hyper, name)
        if value is not None and value > 1 and value != int(value):
            problems.add(f"`{name}: {value:g}`{run.place(name)} must be a whole number, or a share below 1")


def _endless(run: RunConfig, problems: Problems) -> None:
    """A run without an end has nothing to reckon shares and falling rates from."""
    hyper = run.hyper
    if run.process.min_epochs > hyper.num_train_epochs > 0 >= hyper.max_steps:
        problems.add(
            f"`min_epochs: {run.process.min_epochs:g}`{run.place('min_epochs')} is more than num_train_epochs "
            f"{hyper.num_train_epochs:g}{run.place('num_train_epochs')}; raise one or lower the other"
        )
    if not run.is_endless:
        return
    place = run.place("num_train_epochs")
    if hyper.lr_scheduler_type not in WITHOUT_HORIZON and hyper.lr_decay_iters is None and not run.scheduler:
        problems.add(
            f"`num_train_epochs: -1`{place} has no end, towards which lr_scheduler_type {hyper.lr_scheduler_type}"
            f"{run.place('lr_scheduler_type')} would fall; set lr_decay_iters, or lr_scheduler_type constant"
        )
    shares = {name: getattr(hyper, name) for name in ("logging_steps", "save_steps", "eval_steps", "warmup_steps")}
    for name, value in {**shares, "warmup_ratio": hyper.warmup_ratio}.items():
        if value is not None and 0 < value < 1:
            problems.add(f"`{name}: {value:g}`{run.place(name)} is a share of a run without end ({place.strip()})")


def _rules(run: RunConfig, problems: Problems) -> None:
    """Sections that another setting makes pointless, or that need what is not there."""
    blind = eval_strategy(run) == "no" or holds_nothing_out(run)
    stopping, checkpointing = run.early_stopping, run.checkpointing
    if stopping is not None and blind and stopping.monitor not in TRAINING_METRICS:
        problems.add(
            f"`early_stopping`{run.place('early_stopping')} follows {stopping.monitor}, and there is no evaluation; "
            "hold data out, and set do_eval"
        )
    follows_training = stopping is not None and stopping.monitor in TRAINING_METRICS
    if follows_training and not stopping.check_on_train_epoch_end and blind:
        problems.add(
            f"`early_stopping.monitor: {stopping.monitor}`{run.place('early_stopping.monitor')} is checked after "
            "each evaluation, and there is none; set check_on_train_epoch_end: true"
        )
    if checkpointing is not None and checkpointing.monitors and blind:
        problems.add(
            f"`checkpointing.monitor`{run.place('checkpointing.monitor')} needs evaluation; hold data out, set do_eval"
        )
    if checkpointing is not None and run.hyper.save_strategy == "best":
        section = f"`checkpointing`{run.place('checkpointing')}"
        problems.add(
            f"`save_strategy: best`{run.place('save_strategy')} and {section} both say which checkpoints are "
            "best; keep one"
        )
    if checkpointing is not None and checkpointing.dirpath and run.logging is not None and run.logging.log_model:
        problems.add(
            f"`logging.log_model`{run.place('logging.log_model')} looks for checkpoints in output_dir, not in "
            f"`checkpointing.dirpath`{run.place('checkpointing.dirpath')}; leave one out"
        )
    if run.ema is not None and not run.process.using_ema:
        problems.add(f"`ema`{run.place('ema')} has no effect while `using_ema` is false")


def _rates(run: RunConfig, problems: Problems) -> None:
    """A rate that was asked for on the command line, or for a resumed run, and that no step would have."""
    if not ignores_learning_rate(run):
        return
    for key, is_given in (
        ("learning_rate", run.on_command_line("learning_rate")),
        ("resume_lr", run.process.resume_lr),
    ):
        if is_given:
            problems.add(
                f"`{key}: {getattr(run.process, key, run.hyper.learning_rate):g}`{run.place(key)} has no effect: "
                f"lr_scheduler_type {run.hyper.lr_scheduler_type}{run.place('lr_scheduler_type')} has all its rates "
                "from its own options; change scheduler.max_lr"
            )


def _optimizer_words(run: RunConfig, problems: Problems) -> None:
    arguments = run.trainer.get("optim_args") or ""
    if wrong := [part.strip() for part in arguments.split(",") if part.strip() and not part.partition("=")[2].strip()]:
        problems.add(
            f"`optim_args: {arguments}`{run.place('optim_args')}: `{wrong[0]}` is not of the form name=value; write "
            "`momentum=0.9, nesterov=true`"
        )


def _exclusions(run: RunConfig, problems: Problems) -> None:
    """Settings of which one says that another cannot be meant."""
    if run.logging is not None and run.logging.logger_type in ("CSVLogger", "TensorBoardLogger"):
        for key in ("project", "entity", "group", "notes", "log_model"):
            if getattr(run.logging, key):
                place = run.place(f"logging.{key}")
                problems.add(f"`logging.{key}`{place} means nothing to {run.logging.logger_type}; WandbLogger has it")
    half = run.process.weights_dtype in ("float16", "float64")
    for key in ("bf16", "fp16"):
        if half and run.trainer.get(key):
            problems.add(
                f"`{key}`{run.place(key)} and `weights_dtype: {run.process.weights_dtype}`{run.place('weights_dtype')} "
                "exclude each other; keep one"
            )


def _horizons(run: RunConfig, problems: Problems) -> None:
    """Where a schedule is to end, for schedules that do not fall or have a course of their own."""
    horizonless = run.hyper.lr_scheduler_type in WITHOUT_HORIZON
    for name in ("lr_decay_iters", "min_lr"):
        floor_of_plateau = name == "min_lr" and run.hyper.lr_scheduler_type in PLATEAUS
        if getattr(run.hyper, name) is not None and horizonless and not floor_of_plateau:
            problems.add(
                f"`{name}`{run.place(name)} has no effect: lr_scheduler_type {run.hyper.lr_scheduler_type} does not "
                "fall towards an end"
            )
    _course(run, problems)
    lowest, resumed = run.hyper.min_lr, run.process.resume_lr
    if lowest is not None and resumed is not None and resumed < lowest:
        problems.add(
            f"`resume_lr: {resumed:g}`{run.place('resume_lr')} is below `min_lr: {lowest:g}`{run.place('min_lr')}; "
            "lower min_lr too"
        )
    if run.optimizer.get("relative_step"):
        for name in ("lr_scheduler_type", "warmup_steps", "warmup_ratio", "warmup_epochs", "min_lr", "lr_decay_iters"):
            neutral = scalar_keys()[name].default
            value = getattr(run.process if name == "warmup_epochs" else run.hyper, name)
            if run.was_set(name) and value not in (neutral, "constant"):
                problems.add(
                    f"`{name}`{run.place(name)} has no effect: adafactor without a learning rate takes relative "
                    "steps, its own schedule; set learning_rate"
                )


def _course(run: RunConfig, problems: Problems) -> None:
    """Floor and end of a schedule against rate and warm-up."""
    hyper, warm = run.hyper, warmup(run)
    if hyper.min_lr is not None and hyper.min_lr > hyper.learning_rate:
        problems.add(
            f"`min_lr: {hyper.min_lr:g}`{run.place('min_lr')} is above `learning_rate: {hyper.learning_rate:g}`"
            f"{run.place('learning_rate')}; lower it"
        )
    if hyper.lr_decay_iters is not None and warm >= 1 and hyper.lr_decay_iters <= warm:
        problems.add(
            f"`lr_decay_iters: {hyper.lr_decay_iters}`{run.place('lr_decay_iters')} lies within the warm-up "
            f"(`warmup_steps: {warm:g}`{run.place('warmup_steps')}); raise one or lower the other"
        )


def _strategies(run: RunConfig, problems: Problems) -> None:
    for key, reason in _dead_flags(run):
        problems.add(f"`{key}`{run.place(key)} has no effect: {reason}")
    if run.trainer.get("fp16") and run.trainer.get("bf16"):
        problems.add(f"`fp16`{run.place('fp16')} and `bf16`{run.place('bf16')} are both true; keep one")
    needs_metric = run.trainer.get("load_best_model_at_end") or run.hyper.save_strategy == "best"
    if needs_metric and (eval_strategy(run) == "no" or holds_nothing_out(run)):
        key = "load_best_model_at_end" if run.trainer.get("load_best_model_at_end") else "save_strategy"
        problems.add(f"`{key}`{run.place(key)} needs evaluation to know what is best; hold data out, and set do_eval")
    follows_training = run.schedule.monitor in TRAINING_METRICS and run.hyper.lr_scheduler_type == "ReduceLROnPlateau"
    if (
        run.hyper.lr_scheduler_type in PLATEAUS
        and not follows_training
        and (eval_strategy(run) == "no" or holds_nothing_out(run))
    ):
        kind = f"`lr_scheduler_type: {run.hyper.lr_scheduler_type}`{run.place('lr_scheduler_type')}"
        problems.add(f"{kind} follows the evaluation loss; hold data out, and set do_eval")
    if run.hyper.save_strategy == "best" and not run.trainer.get("metric_for_best_model"):
        problems.add(f"`save_strategy: best`{run.place('save_strategy')} needs metric_for_best_model (loss, say)")
    if run.trainer.get("dataloader_persistent_workers") and run.hyper.dataloader_num_workers == 0:
        problems.add(
            f"`dataloader_persistent_workers`{run.place('dataloader_persistent_workers')} needs worker processes; "
            "set dataloader_num_workers above 0"
        )


def _dead_flags(run: RunConfig) -> list[tuple[str, str]]:
    """Flags typed although another setting takes away what they act on; YAML may hold such project defaults."""
    hyper, strategy = run.hyper, eval_strategy(run)
    backends = [hyper.report_to] if isinstance(hyper.report_to, str) else hyper.report_to or []
    # save_steps is also how often a run evaluates that sets no eval_steps.
    saves_dead = hyper.save_strategy != "steps" and (hyper.eval_steps is not None or strategy != "steps")
    dead = {
        "eval_steps": (strategy != "steps", f"evaluation is `{strategy}`"),
        "save_steps": (saves_dead, f"save_strategy is {hyper.save_strategy}"),
        "save_total_limit": (hyper.save_strategy == "no", "save_strategy is no"),
        "logging_steps": (hyper.logging_strategy != "steps", f"logging_strategy is {hyper.logging_strategy}"),
        "logging_dir": (not {"tensorboard", "all"} & set(backends), "report_to has no tensorboard"),
        "do_eval": (
            hyper.do_eval and holds_nothing_out(run),
            "the data holds nothing out (dataset.eval_fraction is 0)",
        ),
    }
    return [(key, reason) for key, (is_dead, reason) in dead.items() if is_dead and run.on_command_line(key)]


def _components(run: RunConfig, problems: Problems) -> None:
    if run.dataset is None:
        problems.add(f"no data: the task `{run.hyper.task_name}` has no `dataset`; name another with --task_name")
    elif getattr(run.dataset.config, "path", "") is None and run.env is None:
        problems.add(f"`dataset.path`{run.place('dataset.path')} is not set, and there is no `env` to record data in")
    elif hasattr(run.dataset.module, "check") and not _recordable(run):
        problems.lines += run.dataset.module.check(run.dataset.config, run)
    for name in keys_of(type(run.model.config)) if run.model and run.dataset else ():
        stated, given = getattr(run.model.config, name), getattr(run.dataset.config, name, None)
        if None not in (stated, given) and stated != given:
            problems.add(
                f"`model.{name}: {stated}`{run.place(f'model.{name}')} contradicts `dataset.{name}: {given}`"
                f"{run.place(f'dataset.{name}')}; leave `model.{name}` out"
            )
    if run.model is None:
        problems.add(f"no model: name one with --model_config; there are {quoted(shipped('model'))}")


def _recordable(run: RunConfig) -> bool:
    """Whether the task's data is recorded on first use: it names an environment and no path of its own."""
    return run.env is not None and getattr(run.dataset.config, "path", None) is None


def _output_dir(run: RunConfig, problems: Problems) -> None:
    folder, place = run.output_dir, run.place("output_dir")
    if not run.hyper.output_dir.strip():
        problems.add(f"`output_dir`{place} is empty; name a folder")
        return
    if run.checkpoint_dir != folder:
        _writable("checkpointing.dirpath", run.checkpoint_dir, run, problems)
    if run.hyper.logging_dir:
        _writable("logging_dir", Path(os.path.expanduser(run.hyper.logging_dir)), run, problems)
    if run.logging is not None and run.logging.save_dir:
        _writable("logging.save_dir", Path(os.path.expanduser(run.logging.save_dir)), run, problems)
    if not _writable("output_dir", folder, run, problems):
        return
    home, point = run.checkpoint_dir, None
    try:
        point = find_checkpoint(run).point
    except ConfigError as error:
        problems.lines += error.problems
    if point is not None:
        problems.lines += resume_changes(run, point).problems
    parents = (folder.absolute(), home.absolute())
    own = wants_resume(run) and (takes_newest(run) or point is None or point.folder.absolute().parent in parents)
    files = (*map(folder.joinpath, RUN_FILES), *checkpoints(folder), *(checkpoints(home) if home != folder else ()))
    if not own and (used := [path.name for path in files if path.exists()]):
        problems.add(
            f"`output_dir: {folder}`{place} already holds a run ({used[0]}); continue it with "
            "--resume_from_checkpoint auto, or name another --output_dir"
        )


def _writable(key: str, folder: Path, run: RunConfig, problems: Problems) -> bool:
    """Whether a folder is there to write to, or can be made."""
    existing, place = folder, run.place(key)
    longest = max((len(os.fsencode(part)) for part in folder.parts), default=0)
    if longest > MOST_OF_NAME:
        problems.add(f"`{key}`{place} has a name of {longest} bytes, and file systems take {MOST_OF_NAME}; shorten it")
        return False
    while not existing.exists() and existing != existing.parent:
        if existing.is_symlink():
            problems.add(f"`{key}: {folder}`{place} cannot be made: {existing} is a link that leads nowhere")
            return False
        existing = existing.parent
    if folder.exists() and not folder.is_dir():
        problems.add(f"`{key}: {folder}`{place} is a file; name a folder")
    elif not existing.is_dir():
        problems.add(f"`{key}: {folder}`{place} cannot be made: {existing} is a file")
    elif not os.access(existing, os.W_OK | os.X_OK) or existing.is_relative_to("/proc"):
        problems.add(f"`{key}: {folder}`{place} is not writable ({existing}); name a folder you may write to")
    else:
        return True
    return False
