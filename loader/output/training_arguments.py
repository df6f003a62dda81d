"""Build `transformers.TrainingArguments` from a RunConfig."""

from __future__ import annotations

import os
import re
import sys
import typing
from typing import Any

from loader.checks.launch import apply_hardware
from loader.errors import ConfigError
from loader.resolve.run_config import OWN_DEFAULTS, RunConfig, eval_strategy, warmup
from loader.schema.hyper_arguments import HyperArguments
from loader.schema.installed import trainer_fields
from loader.schema.keys import keys_of

ENDLESS_EPOCHS = 10.0**7  # what `num_train_epochs: -1` becomes
# Keys that name files: they choose what is read and are not settings of the run itself.
FILE_KEYS = ("task_name", "training_config", "model_config")
# Fields of hyper that TrainingArguments lacks, or that take another form in it.
NOT_PASSED = {
    *FILE_KEYS, "warmup_steps", "warmup_ratio", "logging_dir", "optim", "report_to", "resume_from_checkpoint", "min_lr",
    "lr_decay_iters", "lr_scheduler_type", "resume_changed", "resume_schedule", "global_batch_size",
}  # fmt: skip


def training_arguments(run: RunConfig) -> Any:
    """Build the `TrainingArguments` of a run, for the installed version of transformers.

    `warmup_ratio` and `logging_dir`, gone from newer versions, keep working: the ratio is passed as a fractional
    `warmup_steps`, the directory through the variable that replaced it.

    Raises:
        ConfigError: TrainingArguments refuses a value (an unsupported precision on this hardware, say).
    """
    from transformers import TrainingArguments

    values = argument_values(run)
    if run.hyper.logging_dir and "logging_dir" not in values:
        os.environ["TENSORBOARD_LOGGING_DIR"] = os.path.expanduser(run.hyper.logging_dir)
    else:
        os.environ.pop("TENSORBOARD_LOGGING_DIR", None)
    for line in [*apply_hardware(run, values), *_for_this_machine(values, run)]:
        run.notes.append(line)
    try:
        arguments = TrainingArguments(**values)
    except (ValueError, TypeError, ImportError, OSError) as error:
        raise ConfigError(_refusal(run, " ".join(str(error).split()))) from error
    return arguments


def _refusal(run: RunConfig, text: str) -> str:
    """The error of TrainingArguments, with the place of each key that it names."""
    named = [key for key in trainer_fields() if re.search(rf"\b{key}\b", text) and run.place(key)]
    places = ", ".join(f"`{key}`{run.place(key)}" for key in named)
    return f"TrainingArguments refuses this configuration{f' ({places})' if places else ''}: {text}"


def argument_values(run: RunConfig) -> dict[str, Any]:
    """Return the keyword arguments for TrainingArguments; needs no torch."""
    fields, hyper = trainer_fields(), run.hyper
    values = {**OWN_DEFAULTS, **run.trainer}
    values |= {name: getattr(hyper, name) for name in keys_of(HyperArguments) if name not in NOT_PASSED}
    values["output_dir"] = str(run.output_dir)
    values["warmup_steps"] = warmup(run)
    values["report_to"] = hyper.report_to if hyper.report_to is not None else "none"
    values["eval_strategy"] = eval_strategy(run)
    values["eval_steps"] = hyper.eval_steps if hyper.eval_steps is not None else hyper.save_steps
    values["optim"] = (
        hyper.optim
        if hyper.optim in typing.get_args(fields["optim"].annotation)
        else fields["optim"].default or "adamw_torch"
    )
    words = typing.get_args(fields["lr_scheduler_type"].annotation)
    # The Trainer's own schedule is built from the RunConfig; this is what transformers records and reports.
    values["lr_scheduler_type"] = hyper.lr_scheduler_type if hyper.lr_scheduler_type in words else "constant"
    if run.logging is not None and run.logging.project:
        values["project"] = run.logging.project
    if run.is_endless:
        values["num_train_epochs"] = ENDLESS_EPOCHS
    if (run.process.check_val_every_n_epoch or 1) > 1 and eval_strategy(run) == "epoch":
        values["eval_strategy"] = "no"  # a callback evaluates at the end of every n-th epoch
    if "logging_dir" in fields and hyper.logging_dir:
        values["logging_dir"] = hyper.logging_dir
    if "disable_tqdm" not in values:
        values["disable_tqdm"] = not sys.stderr.isatty()  # a progress bar would fill a log file
    for suffix in ("", "_kwargs"):  # newer versions warn at the old name
        old, new = f"gradient_checkpointing{suffix}", f"activation_checkpointing{suffix}"
        if values.get(old) is not None and new in fields:
            values.setdefault(new, values.pop(old))
    return {name: value for name, value in values.items() if name in fields}


def _for_this_machine(values: dict[str, Any], run: RunConfig) -> list[str]:
    """Turn off what needs workers or an accelerator; return a line for each setting that the user gave."""
    import torch

    lines = []
    if values.get("dataloader_prefetch_factor") and not values["dataloader_num_workers"]:
        lines.append("dataloader_prefetch_factor: no worker processes, so no batch is fetched ahead")
        values["dataloader_prefetch_factor"] = None
    if values.get("dataloader_multiprocessing_context") and not values["dataloader_num_workers"]:
        lines.append("dataloader_multiprocessing_context: there are no worker processes to start")
        values["dataloader_multiprocessing_context"] = None
    if torch.accelerator.is_available() and not values.get("use_cpu"):
        return lines
    if values["dataloader_pin_memory"] and run.was_set("dataloader_pin_memory"):
        lines.append("dataloader_pin_memory: no accelerator is used, so memory is not pinned")
    values["dataloader_pin_memory"] = False
    accelerator = values.get("accelerator_config")
    if isinstance(accelerator, dict) and accelerator.get("non_blocking"):
        # Copies to a device run beside the computation only from pinned memory: without it this key has no effect.
        lines.append("accelerator_config.non_blocking: no accelerator is used, so nothing is copied to one")
        values["accelerator_config"] = {key: value for key, value in accelerator.items() if key != "non_blocking"}
    if values.get("bf16") or values.get("bf16_full_eval"):
        values["use_cpu"] = True  # else TrainingArguments takes bfloat16 to mean a GPU that it cannot find
    return lines
