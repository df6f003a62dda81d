"""The keys a configuration may hold: where each lives, its type, bounds, default and help text.

A key is one of
- a hyper key: a field of `HyperArguments` (YAML may set a project's own default for it);
- a process key: a field of `ProcessArguments`;
- a field of the installed `TrainingArguments`;
- a section: `dataset`, `env`, `model`, `loss` (components: `name` and that component's own keys), `optimizer`,
  `scheduler`, `ema`, `early_stopping`, `checkpointing`, `logging`, `eval_runner`, `param_groups`, `callbacks`.

Names, types, defaults and help texts of the fields of `TrainingArguments` are read from the installed version, see
`installed.py`; what Keel adds to them (bounds, meaning on resume, required switches, replaced fields) stands here.
Sections that the trainer acts on are declared in `trainer/settings.py`. The loader may not import the trainer: it finds
that module by name, as it finds components, which are found by file name, or by a dotted name outside Keel.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import sys
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from loader.errors import ConfigError, quoted
from loader.schema.hyper_arguments import HyperArguments
from loader.schema.installed import trainer_fields
from loader.schema.process_arguments import ProcessArguments
from storage.config_keys import (
    BOUNDS,
    EVALUATION_TIME,
    HARMLESS,
    IMPOSSIBLE,
    LOGGING,
    OWN_RULE,
    TRAINER,
    TRAJECTORY,
    default_of,
)
from storage.suggestions import did_you_mean

_trainer = importlib.import_module("trainer.settings")

# section -> the package its `name` is looked up in
COMPONENTS = {"dataset": "data", "env": "sim", "model": "models", "loss": "models.losses"}
# Sections whose further keys are passed to a constructor.
FREE_SECTIONS: dict[str, type] = {"optimizer": _trainer.OptimizerConfig, "scheduler": _trainer.SchedulerConfig}
# Sections that are absent until a file contains them (`null` removes one again).
OPTIONAL_SECTIONS: dict[str, type] = {
    "ema": _trainer.EmaConfig,
    "early_stopping": _trainer.EarlyStoppingConfig,
    "checkpointing": _trainer.CheckpointingConfig,
    "logging": _trainer.LoggingConfig,
    "eval_runner": _trainer.EvalRunnerConfig,
}
LIST_SECTIONS: dict[str, Any] = {"param_groups": _trainer.ParameterGroup, "callbacks": None}
SECTIONS = (*COMPONENTS, *FREE_SECTIONS, *OPTIONAL_SECTIONS, *LIST_SECTIONS)
# `on_resume` of sections as a whole, and of keys in them that declare none; TRAJECTORY if absent.
SECTION_ON_RESUME = {
    "model": IMPOSSIBLE,
    "dataset.name": IMPOSSIBLE,
    "param_groups": IMPOSSIBLE,
    "env": HARMLESS,  # data is recorded with it before a run begins
    "checkpointing": HARMLESS,
    "logging": HARMLESS,
    "eval_runner": HARMLESS,
    "callbacks": HARMLESS,  # user code: its effect is not known here
}


# ---- modules of components ----


ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Component:
    """A chosen component: its module (with `Config`, `PROCESS_KEYS` and its own functions) and its validated config."""

    name: str
    module: ModuleType
    config: Any


@cache
def shipped(section: str) -> tuple[str, ...]:
    """Return the names of Keel's components: modules of the section's folder that declare PROCESS_KEYS."""
    folder = ROOT / COMPONENTS[section].replace(".", "/")
    names = []
    for path in sorted([*folder.glob("*.py"), *folder.glob("*/__init__.py")]):
        name = path.parent.name if path.name == "__init__.py" else path.stem
        if "\nPROCESS_KEYS" in path.read_text(encoding="utf-8"):
            names.append(name)
    return tuple(names)


def component_module(section: str, name: str, place: str = "") -> ModuleType:
    """Import the module that implements `section: {name: …}`.

    Raises:
        ConfigError: no such module (with the nearest name), a module without a `Config`, or one whose own import failed
            (two different messages; the second names what could not be imported), or code in the folder of a run.
    """
    path = name if "." in name else f"{COMPONENTS[section]}.{name}"
    if not all(part.isidentifier() for part in path.split(".")):
        raise ConfigError(f"`{section}.name: {name}`{place} is not a module name")
    if "." in name and (run := _run_around(path)) is not None:
        raise ConfigError(
            f"`{section}.name: {name}`{place}: the module is in {run}, the folder of a run, from which no code is "
            "imported; copy it to a package of your own"
        )
    if not _exists(path):
        known = shipped(section)
        remedy = did_you_mean(name, known, f"; there are: {quoted(known)}; a dotted name is your own module")
        raise ConfigError(f"`{section}.name: {name}`{place}: no module `{path}`{remedy}")
    try:
        module = importlib.import_module(path)
    except (Exception, SystemExit) as error:  # a script without `if __name__ == "__main__"` ends when it is imported
        raise ConfigError(
            f"`{section}.name: {name}`{place}: module `{path}` exists, but importing it failed: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not hasattr(module, "Config"):
        raise ConfigError(f"`{section}.name: {name}`{place}: module `{path}` has no `Config` dataclass")
    return module


def _run_around(path: str) -> Path | None:
    """Return the folder of a run that contains a module, or None.

    Python takes any folder below the working folder for a package, so that a run.yaml from somebody else's checkpoint
    could name a file beside it.
    """
    parts = path.split(".")
    for entry in sys.path:
        for count in range(1, len(parts)):
            folder = Path(entry, *parts[:count])
            if (folder / "run.yaml").is_file():
                return folder
    return None


def _exists(path: str) -> bool:
    try:
        return importlib.util.find_spec(path) is not None
    except ModuleNotFoundError as error:
        # Looking up `a.b` imports `a`: a missing `a` is «no such module», a missing import inside `a` is not.
        return not path.startswith(str(error.name))
    except (Exception, SystemExit):
        return True  # a parent package exists and fails on import; importing it again says how


# ---- keys ----

# Keys of a task file alone, which name a training file.
TASK_KEYS = {
    "training": "The recipe if no training file is named.",
    "defaults": "The defaults of a training file whose keys imply this task.",
}
# Kinds of file, and the top-level keys each may hold. A training file may hold any of them.
FILE_SECTIONS = {"task": ("dataset", "env", "model", "loss", *TASK_KEYS), "model": ("model",)}

LOG_LEVELS = ("detail", "debug", "info", "warning", "error", "critical", "passive")


@dataclass(frozen=True)
class Key:
    """One declared key.

    Attributes:
        bounds: `ge`, `gt`, `le`, `lt` of a number.
        on_resume: What a changed value means for a resumed run, see `storage/config_keys.py`; None: not declared.
        needs, needs_value: The key that must be set for this one to have an effect; with a value, set to contain it, or
            of a component's key, to be one of them.
        unless: See `storage/config_keys.py`.
        used_by: Who reads a process parameter.
        is_path: See `storage/config_keys.py`.
    """

    name: str
    annotation: Any
    bounds: dict[str, float]
    default: Any
    help: str
    on_resume: str | None = None
    needs: str | None = None
    needs_value: str | tuple[str, ...] | None = None
    unless: tuple[str, ...] = ()
    used_by: str = TRAINER
    is_path: bool | tuple[str, ...] = False


def _key(name: str, annotation: Any, default: Any, help: str, metadata: Mapping[str, Any]) -> Key:
    bounds = {bound: metadata[bound] for bound in BOUNDS if bound in metadata}
    names = ("on_resume", "needs", "needs_value", "unless", "used_by", "is_path")
    rest = {name: metadata[name] for name in names if name in metadata}
    return Key(name, annotation, bounds, default, help, **rest)


@cache
def keys_of(dataclass_type: type) -> dict[str, Key]:
    """The fields of a dataclass as keys, declared by each field's metadata."""
    hints = typing.get_type_hints(dataclass_type)
    keys = {}
    for field in dataclasses.fields(dataclass_type):
        default, metadata = default_of(field), field.metadata
        keys[field.name] = _key(field.name, hints[field.name], default, metadata.get("help", ""), metadata)
    return keys


def overlay(name: str) -> dict[str, Any]:
    """Return what Keel adds to a field of TrainingArguments, or to a key of a mapping field; empty: nothing."""
    found: dict[str, Any] = dict(zip(("needs", "needs_value"), NEEDS.get(name, ()), strict=False))
    found |= next(({"on_resume": kind} for kind, names in ON_RESUME.items() if name in names), {})
    found |= {"ge": LEAST[name]} if name in LEAST else {}
    return found | ({"gt": 0} if name == "ddp_timeout" else {})


@cache
def scalar_keys() -> dict[str, Key]:
    """Every top-level key that is not a section: hyper, process, then the rest of TrainingArguments."""
    keys = {**keys_of(HyperArguments), **keys_of(ProcessArguments)}
    for name, field in trainer_fields().items():
        if name not in keys:
            keys[name] = _key(name, field.annotation, field.default, field.help, overlay(name))
    # YAML allows more types than a flag does for a few hyper keys.
    keys["report_to"] = dataclasses.replace(keys["report_to"], annotation=str | list[str] | None)
    resume = keys["resume_from_checkpoint"]
    keys["resume_from_checkpoint"] = dataclasses.replace(resume, annotation=str | bool | None)
    for name in ("log_level", "log_level_replica"):
        keys[name] = dataclasses.replace(keys[name], annotation=Literal[LOG_LEVELS])
    return keys


def section_of(name: str) -> str | None:
    """Return the first section in which a component of Keel has a key; a shared size belongs to the data."""
    for section in COMPONENTS:
        if any(name in keys_of(component_module(section, component).Config) for component in shipped(section)):
            return section
    return None


def on_resume(path: str, component_config: type | None = None) -> str:
    """Return what a changed key means for a resumed run; TRAJECTORY for a key that declares nothing.

    Args:
        path: `learning_rate`, `ema.decay`, `param_groups[0].lr`, `dataset.block_size`, `fsdp_config.version` …
        component_config: The `Config` class of the component for a path in `dataset`, `env` or `model`.
    """
    section, _, name = path.partition(".")
    section = section.partition("[")[0]
    kinds = {**FREE_SECTIONS, **OPTIONAL_SECTIONS, **LIST_SECTIONS}
    kind = component_config if section in COMPONENTS else kinds.get(section)
    declared = keys_of(kind).get(name.partition(".")[0]) if kind is not None else None
    if declared is None and section not in (*kinds, *COMPONENTS):
        declared = scalar_keys().get(section)
    candidates = (
        overlay(path).get("on_resume"),
        SECTION_ON_RESUME.get(path),
        declared.on_resume if declared is not None else None,
        SECTION_ON_RESUME.get(section),
    )
    return next(filter(None, candidates), TRAJECTORY)


# ---- what Keel adds to the fields of TrainingArguments ----

# Class of `on_resume` -> fields, or keys of a mapping field. Those that stand nowhere change the trajectory.
ON_RESUME: dict[str, tuple[str, ...]] = {
    IMPOSSIBLE: ("optim_target_modules", "fp16", "fsdp", "deepspeed"),
    OWN_RULE: ("gradient_accumulation_steps",),
    EVALUATION_TIME: ("eval_strategy", "eval_delay", "eval_on_start"),
    LOGGING: ("logging_first_step", "logging_nan_inf_filter"),
    HARMLESS: (
        # where and in how much memory it is computed
        "use_cpu", "activation_checkpointing", "gradient_checkpointing", "use_cache", "torch_empty_cache_steps",
        "accelerator_config.non_blocking", "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_static_graph",
        "ddp_backend", "ddp_timeout",
        # how batches are loaded, not which
        "dataloader_persistent_workers", "dataloader_prefetch_factor", "dataloader_multiprocessing_context",
        # logs, saves, the hub
        "log_on_each_node", "log_level", "log_level_replica", "disable_tqdm", "debug", "skip_memory_metrics",
        "run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "save_only_model",
        "load_best_model_at_end", "metric_for_best_model", "greater_is_better",
        "restore_callback_states_from_checkpoint", "push_to_hub", "hub_token", "hub_private_repo", "hub_model_id",
        "hub_revision",
    ),
}  # fmt: skip
# The switch that a field needs, and the value that the switch must contain.
NEEDS: dict[str, tuple[str, ...]] = {
    "fsdp_config": ("fsdp",),
    "activation_checkpointing_kwargs": ("activation_checkpointing",),
    "gradient_checkpointing_kwargs": ("gradient_checkpointing",),
    "liger_kernel_config": ("use_liger_kernel",),
    "greater_is_better": ("metric_for_best_model",),
    "run_name": ("report_to",),
    **dict.fromkeys(
        ("project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"), ("report_to", "trackio")
    ),
    **dict.fromkeys(("hub_private_repo", "hub_model_id", "hub_revision"), ("push_to_hub",)),
}
LEAST = {
    "gradient_accumulation_steps": 1, "max_grad_norm": 0, "data_seed": 0, "torch_empty_cache_steps": 1, "eval_delay": 0,
    "label_smoothing_factor": 0, "neftune_noise_alpha": 0, "dataloader_prefetch_factor": 1,
}  # fmt: skip


# Fields that would have no effect, and what to use instead.
REPLACED: dict[str, str] = {
    "do_train": "train.py always trains",
    "do_predict": "score a checkpoint with eval.py",
    "length_column_name": "the data set decides the order of its samples",
    "local_rank": "the launcher sets it",
    "auto_find_batch_size": "it would change the batch size, and with it the result; set per_device_train_batch_size",
    "include_num_input_tokens_seen": "the log of a language model has `tokens`, at no cost",
    "enable_jit_checkpoint": "a preempted run (SIGTERM) always saves",
    "save_on_each_node": "all processes share one folder, and one of them writes checkpoints",
    "hub_strategy": "push_to_hub pushes the model once, at the end",
    "hub_always_push": "push_to_hub pushes the model once, at the end",
    "bf16_full_eval": "evaluation uses the precision of training; set bf16 or weights_dtype",
    "fp16_full_eval": "evaluation uses the precision of training; set fp16 or weights_dtype",
    **dict.fromkeys(
        (
            "prediction_loss_only", "include_for_metrics", "batch_eval_metrics", "eval_accumulation_steps",
            "eval_do_concat_batches", "eval_use_gather_object", "label_names",
        ),
        "an evaluation gathers only losses; eval.py scores predictions",
    ),
    "parallelism_config": "it is an object of accelerate; set it in the file given to accelerate launch",
}  # fmt: skip
