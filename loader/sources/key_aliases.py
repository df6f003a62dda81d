"""Aliases: the keys of other systems and the keys of ours that they set.

Lightning's sections (`trainer`, `lightning`, `dataloader`), Hydra's builder groups, the flags of language-model scripts
and short names of older scripts are read as if our own keys had been written. `translate_aliases.py` applies the table.
"""

from __future__ import annotations

from collections.abc import Callable

from loader.errors import ConfigError
from loader.schema.alias_flags import alias_paths
from loader.schema.keys import OPTIONAL_SECTIONS, SECTIONS, scalar_keys
from loader.sources import signal_aliases
from loader.sources.config_tree import MISSING, Node, node_of
from storage.suggestions import did_you_mean

Assignments = list[tuple[str, Node]]  # our key, its value


class NotAvailable(str):
    """Why an alias is refused: the feature it belongs to does not exist yet."""


def _value(node: Node, value: object) -> Node:
    return node if value == MISSING else node_of(value, node.origin)  # a missing value keeps the name it was written as


def _only(*neutral: object) -> Callable[[Node], Assignments]:
    """Accept a key with values that change nothing here and refuse any other value."""

    def convert(node: Node) -> Assignments:
        if node.plain() not in neutral:
            shown = " or ".join("null" if value is None else str(value) for value in neutral)
            raise ConfigError(f"is not available; it may be {shown}")
        return []

    return convert


def _switch(node: Node) -> bool:
    if not isinstance(node.value, bool):
        raise ConfigError("must be true or false")
    return node.value


# Lightning's precision -> (bf16, fp16, weights_dtype): all three, so that a later value replaces an earlier one.
PRECISIONS: dict[str, tuple[bool, bool, str | None]] = {
    **dict.fromkeys(("32", "32-true"), (False, False, None)),
    **dict.fromkeys(("16", "16-mixed"), (False, True, None)),
    **dict.fromkeys(("bf16", "bf16-mixed"), (True, False, None)),
    **dict.fromkeys(("64", "64-true"), (False, False, "float64")),
    "bf16-true": (False, False, "bfloat16"),
    "16-true": (False, False, "float16"),
}


def _precision(node: Node) -> Assignments:
    name = str(node.plain())
    if name not in PRECISIONS:
        raise ConfigError(f"must be one of {', '.join(PRECISIONS)}{did_you_mean(name, PRECISIONS)}")
    keys = ("bf16", "fp16", "weights_dtype")
    return [(key, _value(node, value)) for key, value in zip(keys, PRECISIONS[name], strict=True)]


def _clip(node: Node) -> Assignments:
    return [("max_grad_norm", _value(node, 0.0) if node.value is None else node)]


def _checkpointing_switch(node: Node) -> Assignments:
    return [] if _switch(node) else [("save_strategy", _value(node, "no")), ("checkpointing", _value(node, None))]


def _warmup(node: Node) -> Assignments:
    """Convert a number of steps, or a mapping with `steps` (counted in `interval`), `epochs` or `ratio`."""
    if not node.is_mapping:
        return [("warmup_steps", _value(node, 0) if node.value is None else node)]
    targets = {"steps": "warmup_steps", "epochs": "warmup_epochs", "ratio": "warmup_ratio"}
    interval = node.value.get("interval")
    if interval is not None and interval.value not in ("step", "epoch"):
        raise ConfigError(f"`interval: {interval.plain()}` must be step or epoch")
    if interval is not None and interval.value == "epoch":
        targets["steps"] = "warmup_epochs"
    unknown = [name for name in node.value if name not in (*targets, "interval")]
    if unknown:
        raise ConfigError(f"has no key `{unknown[0]}`{did_you_mean(unknown[0], (*targets, 'interval'))}")
    lengths = [(targets[name], child) for name, child in node.value.items() if name != "interval"]
    if not lengths:
        raise ConfigError("needs `steps`, `epochs` or `ratio`")
    return lengths


SCHEDULER_PRESETS = ("exponential", "reducelronplateau")  # files in configs/scheduler/
SCHEDULER_NAMES = {
    "none": "constant",
    "exponential": "ExponentialLR",
    "step": "StepLR",
    "plateau": "ReduceLROnPlateau",
    "reducelronplateau": "ReduceLROnPlateau",
}


def _scheduler_name(node: Node) -> Assignments:
    name = "none" if node.value is None else str(node.plain())
    if name in SCHEDULER_PRESETS:
        return [("scheduler", _value(node, name))]
    if name == "none":
        return [("lr_scheduler_type", Node("constant", node.origin, name))]
    return [("lr_scheduler_type", _value(node, SCHEDULER_NAMES.get(name, name)))]


def _lr_scheduler(node: Node) -> Assignments:
    """A name, or Lightning's mapping with `class_name`.

    `exponential` decays by an equal factor every step and reaches min_lr at the end of the run.
    """
    if not node.is_mapping and node.value == "exponential":
        return [("scheduler", _value(node, {"name": "ExponentialLR", "interval": "step"}))]
    if not node.is_mapping:
        return _scheduler_name(node)
    return [("scheduler", Node(_renamed(node, "class_name"), node.origin))]


def _renamed(node: Node, name_key: str) -> dict[str, Node]:
    """Return the mapping with `name_key` renamed to `name`."""
    if name_key in node.value and "name" in node.value:
        raise ConfigError(f"has `{name_key}` and `name`; keep one")
    return {("name" if key == name_key else key): child for key, child in node.value.items()}


def _builder(section: str, name_key: str) -> Callable[[Node], Assignments]:
    """Convert one of Hydra's builder groups: a section under another name, or the name of a preset."""

    def convert(node: Node) -> Assignments:
        if not node.is_mapping:
            return [(section, node)] if node.value is not None else []
        keys = _renamed(node, name_key)
        if "is_main_process" in keys:
            _is_main_process(keys.pop("is_main_process"))
        name = keys.get("name")
        if section == "scheduler" and name is not None:
            if name.value == "exponential":
                keys.setdefault("gamma", _value(name, 0.9))
            chosen = "none" if name.value is None else str(name.plain())
            keys["name"] = _value(name, SCHEDULER_NAMES.get(chosen, chosen))
        return [(section, Node(keys, node.origin))]

    return convert


def _is_main_process(node: Node) -> Assignments:
    """Accept a key that no optimizer takes: the launcher decides which process is the main one."""
    if not isinstance(node.value, bool):
        raise ConfigError(f"has `is_main_process: {node.plain()}`, which must be true or false")
    return []


def _data_splits(node: Node) -> Assignments:
    """Convert the splits that a run reads: what trains (`all`, or the dataset's `train_split`), what is scored."""
    names = node.plain()
    if names == MISSING:
        return [("do_eval", node)]
    if not isinstance(names, list) or not names or not {str(name) for name in names} <= set(DATA_SPLITS):
        raise ConfigError(f"must be a list of {', '.join(DATA_SPLITS)}")
    if not {"train", "all"} & set(names):
        raise ConfigError("has nothing to train on; add train or all")
    keys = {"do_eval": "validation" in names, "evaluate_test": "test" in names}
    if "train" not in names:
        keys["dataset.train_split"] = "all"
    return [(key, _value(node, value)) for key, value in keys.items()]


DATA_SPLITS = ("train", "validation", "test", "all")
BATCH_SIZES = ("per_device_train_batch_size", "per_device_eval_batch_size")


def _sanity_check(node: Node) -> Assignments:
    if isinstance(node.value, bool) or not isinstance(node.value, int):
        raise ConfigError("must be a whole number")
    return [("eval_on_start", _value(node, node.value != 0))]


def _validation_interval(node: Node) -> Assignments:
    if node.value == 1.0 and isinstance(node.value, float):  # once an epoch, their default
        return [("check_val_every_n_epoch", _value(node, 1))]
    if isinstance(node.value, bool) or not isinstance(node.value, int):
        raise ConfigError(
            "is a number of steps here; a share of an epoch is not available, use check_val_every_n_epoch"
        )
    return [("eval_steps", node)]


def _progress_bar(node: Node) -> Assignments:
    return [("disable_tqdm", _value(node, not _switch(node)))]


def _logger(node: Node) -> Assignments:
    if node.value is True:
        return []
    if node.value is False or node.value is None:
        return [("logging", _value(node, {"logger_type": None}))]
    raise ConfigError("is written as the section `logging: {logger_type: …}`")


# Together they name the pretrained weights; `resolve_model_sources` reads them once all layers are known.
MODEL_SOURCES = ("base_model_path", "hf_models_dir", "finetuned_models_dir")

# Alias -> our key, or a function from the value to assignments, or why it is not available yet.
LIGHTNING = {
    "lr": "learning_rate",
    "weight_decay": "weight_decay",
    "resume_lr": "resume_lr",
    "resume_weight_decay": "resume_weight_decay",
    "resume_context": "resume_context",
    "resume_token_corruption": "resume_token_corruption",
    "compile": "torch_compile",
    "benchmark_train_step": "benchmark_train_step",
    "no_decay_verbose": "no_decay_verbose",
    "grad_clip_threshold": "grad_clip_threshold",
    "lr_scheduler": _lr_scheduler,
    "lr_warmup": _warmup,
}
TRAINER = {
    "accelerator": "accelerator",
    "strategy": "strategy",
    "devices": "devices",
    "num_nodes": _only(1),
    "max_epochs": "num_train_epochs",
    "min_epochs": "min_epochs",
    "max_steps": "max_steps",
    "precision": _precision,
    "gradient_clip_val": _clip,
    "gradient_clip_algorithm": _only("norm", None),
    "accumulate_grad_batches": "gradient_accumulation_steps",
    "limit_train_batches": "limit_train_batches",
    "limit_val_batches": "limit_val_batches",
    "check_val_every_n_epoch": "check_val_every_n_epoch",
    "val_check_interval": _validation_interval,
    "num_sanity_val_steps": _sanity_check,
    "log_every_n_steps": "logging_steps",
    "enable_checkpointing": _checkpointing_switch,
    "enable_progress_bar": _progress_bar,
    "deterministic": "full_determinism",
    "default_root_dir": "output_dir",
    "tune_batch_size": "tune_batch_size",
    "early_stopping": "early_stopping",
    "checkpoint_cadence_epochs": "checkpointing.every_n_epochs",
    "validate_before_resume": "validate_before_resume",
    "callbacks": "callbacks",
    "logger": _logger,
    # Arguments of Lightning's Trainer that have no counterpart, at their defaults.
    "enable_model_summary": _only(True, False, None),
    **dict.fromkeys(("use_distributed_sampler", "inference_mode"), _only(True)),
    **dict.fromkeys(("fast_dev_run", "detect_anomaly", "sync_batchnorm", "barebones"), _only(False)),
    **dict.fromkeys(("overfit_batches", "reload_dataloaders_every_n_epochs"), _only(0)),
    **dict.fromkeys(("limit_test_batches", "limit_predict_batches"), _only(1.0, None)),
    **dict.fromkeys(("benchmark", "max_time", "min_steps", "profiler", "plugins"), _only(None, False)),
}
LOADER = {
    "batch_size": BATCH_SIZES,
    "num_workers": "dataloader_num_workers",
    "prefetch_factor": "dataloader_prefetch_factor",
    "pin_memory": "dataloader_pin_memory",
    "persistent_workers": "dataloader_persistent_workers",
    "drop_last": "dataloader_drop_last",
    "shuffle": "shuffle",
    "splits": _data_splits,
    "per_device_batch_size": BATCH_SIZES,
    "num_workers_per_process": "dataloader_num_workers",
    **signal_aliases.LOADERS["MixupDataLoader"],
    **signal_aliases.LOADERS["TextDataLoader"],
}
EVAL_LOADER = {
    "batch_size": "per_device_eval_batch_size",
    "num_workers": "eval_num_workers",
    "shuffle": "eval_shuffle",
}


def _flag_aliases() -> dict[str, str]:
    """Aliases of language-model scripts that set one key, except those that already are keys or sections of YAML."""
    return {name: path for name, path in alias_paths().items() if path is not None and name != path.split(".")[0]}


ALIASES: dict[str, object] = {
    **{f"lightning.{key}": target for key, target in LIGHTNING.items()},
    **{f"trainer.{key}": target for key, target in TRAINER.items()},
    **{
        f"{section}.{key}": target for section in ("dataloader", "dataloader_builder") for key, target in LOADER.items()
    },
    **{f"dataloader.train_dataloader.{key}": LOADER[key] for key in list(LOADER)[:7] if key != "batch_size"},
    "dataloader.train_dataloader.batch_size": "per_device_train_batch_size",
    **{f"dataloader.val_dataloader.{key}": target for key, target in EVAL_LOADER.items()},
    **{f"dataloader.test_dataloader.{key}": target for key, target in EVAL_LOADER.items()},
    # The same keys at the top level of a file
    **{key: TRAINER[key] for key in ("max_epochs", "precision", "gradient_clip_val", "log_every_n_steps")},
    **{key: TRAINER[key] for key in ("accumulate_grad_batches", "enable_checkpointing", "checkpoint_cadence_epochs")},
    **{key: LIGHTNING[key] for key in ("lr", "lr_scheduler", "lr_warmup", "compile")},
    "warmup": _warmup,
    "resume.lr": "resume_lr",
    "resume.weight_decay": "resume_weight_decay",
    "resume.validate": "validate_before_resume",
    "resume.context": "resume_context",
    "resume.token_corruption": "resume_token_corruption",
    "epochs": "num_train_epochs",
    "batch_size": BATCH_SIZES,
    "checkpoint_every": "checkpointing.every_n_epochs",
    "save_dir": "output_dir",
    "resume_from": "resume_from_checkpoint",
    "optimizer_name": "optimizer",
    "scheduler_name": _scheduler_name,
    "is_main_process": _is_main_process,
    "optimizer_builder": _builder("optimizer", "optimizer_name"),
    "scheduler_builder": _builder("scheduler", "scheduler_name"),
    "train_builder.epochs": "num_train_epochs",
    "train_builder.checkpoint_every": "checkpointing.every_n_epochs",
    "labels": "dataset.labels",
    "model_builder.labels": "dataset.labels",
    **{f"model_builder.{key}": key for key in MODEL_SOURCES},
    **{key: f"dataset.{key}" for key in ("dataset_base_dir", "dataset_config_name", "train_split")},
    "dataloader_class": signal_aliases.dataloader_class,
    "model_name": signal_aliases.model_name,
    "loss_name": signal_aliases.loss_name,
    "datasplitter": signal_aliases.datasplitter,
    "model.ckpt_path": "resume_from_checkpoint",
    **_flag_aliases(),
}
# Sections that exist only in other systems' files.
FOREIGN_SECTIONS = (
    "lightning", "trainer", "dataloader", "resume", "train_builder", "model_builder", "dataloader_builder",
)  # fmt: skip


# Keys that `null` resets; for any other alias null means «not given».
NULLABLE = {
    *OPTIONAL_SECTIONS, "resume_lr", "resume_weight_decay", "resume_context", "resume_token_corruption", "strategy",
    "callbacks", "check_val_every_n_epoch",
}  # fmt: skip


def yaml_keys() -> frozenset[str]:
    """Every key that a training file may have at its top level, aliases included."""
    combined = {name for name, path in alias_paths().items() if path is None}
    aliases = {path for path in ALIASES if "." not in path} | {*FOREIGN_SECTIONS, *MODEL_SOURCES} | combined
    return frozenset(scalar_keys()) | frozenset(SECTIONS) | aliases | {"extends"}
