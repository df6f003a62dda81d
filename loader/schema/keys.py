"""The keys a configuration may hold: where each lives, its type, bounds, default and help text.

A key is one of
- a hyper key: a field of `HyperArguments` (YAML may set a project's own default for it);
- a process key: a field of `ProcessArguments`;
- a field of the installed `TrainingArguments`;
- a section (`sections.py`): `dataset`, `env`, `model` (components: `name` and that component's own keys), `optimizer`,
  `scheduler`, `ema`, `early_stopping`, `checkpointing`, `logging`, `param_groups`, `callbacks`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from loader.command_line.parser import BOUNDS, HyperArguments
from loader.schema.process_arguments import ProcessArguments
from loader.schema.sections import SECTIONS
from loader.schema.training_arguments_fields import REQUIRED, trainer_fields

# Kinds of file, and the top-level keys each may hold. A training file may hold any of them.
FILE_SECTIONS = {"task": ("dataset", "env", "model", "training"), "model": ("model",)}

# Bounds that TrainingArguments checks late or not at all.
TRAINER_BOUNDS: dict[str, dict[str, float]] = {
    "gradient_accumulation_steps": {"ge": 1},
    "max_grad_norm": {"ge": 0},
    "label_smoothing_factor": {"ge": 0, "lt": 1},
    "eval_delay": {"ge": 0},
    "dataloader_prefetch_factor": {"ge": 1},
    "torch_empty_cache_steps": {"ge": 1},
    "data_seed": {"ge": 0},
    "ddp_timeout": {"gt": 0},
}

LOG_LEVELS = ("detail", "debug", "info", "warning", "error", "critical", "passive")

# Fields of TrainingArguments that would do nothing here, and what to use instead.
TAKEN_OVER: dict[str, str] = {
    "do_train": "train.py always trains",
    "do_predict": "score a checkpoint with eval.py",
    "train_sampling_strategy": "the data set decides the order of its samples (episode_first, weights)",
    "length_column_name": "the data set decides the order of its samples",
    "label_smoothing_factor": "every model here computes its own loss",
    "local_rank": "the launcher sets it",
    "auto_find_batch_size": "it changes the batch size, and so the result, unasked; set per_device_train_batch_size",
    "include_num_input_tokens_seen": "the log of a language model has `tokens`, at no cost",
    "enable_jit_checkpoint": "a run that is told to stop (SIGTERM) always saves",
    "save_on_each_node": "all processes see one folder, and one of them writes checkpoints",
    "hub_strategy": "push_to_hub pushes the model once, at the end",
    "hub_always_push": "push_to_hub pushes the model once, at the end",
    "neftune_noise_alpha": "noise on embeddings is not available",
    "use_liger_kernel": "Liger's kernels are not available",
    "liger_kernel_config": "Liger's kernels are not available",
    "bf16_full_eval": "evaluation computes as the training does; set bf16, or weights_dtype",
    "fp16_full_eval": "evaluation computes as the training does; set fp16, or weights_dtype",
    **dict.fromkeys(
        (
            "prediction_loss_only",
            "include_for_metrics",
            "batch_eval_metrics",
            "eval_accumulation_steps",
            "eval_do_concat_batches",
            "eval_use_gather_object",
            "label_names",
        ),
        "an evaluation gathers the losses alone; eval.py scores predictions",
    ),
    "parallelism_config": "it is an object of accelerate's; set it in the file given to accelerate launch",
}


@dataclass(frozen=True)
class Key:
    """One declared key: its type, bounds, default and help text."""

    name: str
    annotation: Any
    bounds: dict[str, float]
    default: Any
    help: str


@cache
def keys_of(dataclass_type: type) -> dict[str, Key]:
    """A dataclass's fields as keys; bounds and help come from each field's metadata."""
    import typing

    hints = typing.get_type_hints(dataclass_type)
    keys = {}
    for each in dataclasses.fields(dataclass_type):
        bounds = {name: each.metadata[name] for name in BOUNDS if name in each.metadata}
        if each.default is not dataclasses.MISSING:
            default = each.default
        else:
            default = each.default_factory() if each.default_factory is not dataclasses.MISSING else REQUIRED
        keys[each.name] = Key(each.name, hints[each.name], bounds, default, each.metadata.get("help", ""))
    return keys


@cache
def scalar_keys() -> dict[str, Key]:
    """Every top-level key that is not a section: hyper, process, then the rest of TrainingArguments."""
    keys = {**keys_of(HyperArguments), **keys_of(ProcessArguments)}
    for name, each in trainer_fields().items():
        if name not in keys:
            keys[name] = Key(name, each.annotation, TRAINER_BOUNDS.get(name, {}), each.default, each.help)
    # A few hyper keys are wider in YAML than a flag can say.
    report_to = keys["report_to"]
    keys["report_to"] = dataclasses.replace(report_to, annotation=str | list[str] | None)
    resume = keys["resume_from_checkpoint"]
    keys["resume_from_checkpoint"] = dataclasses.replace(resume, annotation=str | bool | None)
    for name in ("log_level", "log_level_replica"):
        keys[name] = dataclasses.replace(keys[name], annotation=Literal[LOG_LEVELS])
    return keys


@cache
def yaml_keys() -> frozenset[str]:
    """Every key a training file may hold at its top."""
    from loader.sources.key_aliases import foreign_words

    return frozenset(scalar_keys()) | frozenset(SECTIONS) | foreign_words() | {"extends"}
