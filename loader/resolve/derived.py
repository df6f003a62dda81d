"""Values that follow from several keys of a run."""

from __future__ import annotations

import typing
from typing import Any

from loader.resolve.run_config import RunConfig
from loader.schema.training_arguments_fields import trainer_fields

# Keel's defaults for fields of TrainingArguments, where they differ from transformers'.
OWN_DEFAULTS: dict[str, Any] = {
    "logging_nan_inf_filter": False,  # it replaces a NaN loss by a finite one in the log, and syncs the GPU every step
    "ddp_find_unused_parameters": False,  # it searches the graph for unused parameters in every step
}
TRAINING_LOSS = ("loss", "train_loss", "train/loss")
TRAINING_METRICS = (*TRAINING_LOSS, "grad_norm", "learning_rate")
# Schedules that take rates of their own, with the options that are all of them.
OWN_RATES = {"OneCycleLR": ("max_lr",), "CyclicLR": ("base_lr", "max_lr")}


def ignores_learning_rate(run: RunConfig) -> bool:
    """Whether `learning_rate` has no influence on any rate: the schedule takes its rates from its own options, and
    neither a warm-up, nor a floor, nor a parameter group depends on it."""
    hyper, process = run.hyper, run.process
    if hyper.warmup_steps or hyper.warmup_ratio or process.warmup_epochs or hyper.min_lr:
        return False
    if process.lora_lr is not None or any(group.lr is not None for group in run.param_groups):
        return False
    options = {**(run.trainer.get("lr_scheduler_kwargs") or {}), **run.scheduler}
    own = OWN_RATES.get(hyper.lr_scheduler_type, ())
    return bool(own) and all(options.get(name) is not None for name in own)


def warmup(run: RunConfig) -> float:
    """Warm-up as TrainingArguments takes it: a number of steps, or below 1 a share of all steps."""
    # A ratio of 1 would mean one step; the largest float below 1 means all steps.
    return min(run.hyper.warmup_ratio, 1 - 2**-53) if run.hyper.warmup_ratio > 0 else run.hyper.warmup_steps


def eval_strategy(run: RunConfig) -> str:
    """When to evaluate: `eval_strategy` if YAML sets it, otherwise every `eval_steps` if do_eval is true."""
    if run.process.check_val_every_n_epoch is not None and run.hyper.do_eval:
        return "epoch"
    return run.trainer.get("eval_strategy") or ("steps" if run.hyper.do_eval else "no")


def schedule_counts_epochs(run: RunConfig) -> bool:
    """Whether the schedule counts epochs by default: the classes of torch.optim.lr_scheduler do."""
    return run.hyper.lr_scheduler_type not in typing.get_args(trainer_fields()["lr_scheduler_type"].annotation)


def holds_nothing_out(run: RunConfig) -> bool:
    """Whether the settings of the data already exclude an evaluation set."""
    return run.dataset is not None and getattr(run.dataset.config, "eval_fraction", None) == 0
