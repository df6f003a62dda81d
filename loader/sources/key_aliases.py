"""Other systems' words for our settings: one table from their keys to ours, and what is not available yet.

Lightning's sections (`trainer`, `lightning`, `dataloader`), Hydra's builder groups and the short names of older scripts
are read as if our own keys had been written in their place; the run prints once what each became.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from loader.errors import ConfigError, Problems, did_you_mean
from loader.schema.sections import OPTIONAL_SECTIONS
from loader.sources.alias_flags import translate_words, word_paths, word_table
from loader.sources.config_tree import Node, find, node_of

Moved = list[tuple[str, Node]]


class NotYet(str):
    """Why a key that another system knows is refused: the feature is not available yet."""


def _value(node: Node, value: object) -> Node:
    return node_of(value, node.origin)


def _only(*neutral: object) -> Callable[[Node], Moved]:
    """A key whose neutral values change nothing here; any other is refused."""

    def move(node: Node) -> Moved:
        if node.plain() not in neutral:
            shown = " or ".join("null" if each is None else str(each) for each in neutral)
            raise ConfigError(f"is not available; it may be {shown}")
        return []

    return move


def _switch(node: Node) -> bool:
    if not isinstance(node.value, bool):
        raise ConfigError("must be true or false")
    return node.value


# Word -> (bf16, fp16, weights_dtype): each says all three, so that a later word undoes an earlier one.
PRECISIONS: dict[str, tuple[bool, bool, str | None]] = {
    **dict.fromkeys(("32", "32-true"), (False, False, None)),
    **dict.fromkeys(("16", "16-mixed"), (False, True, None)),
    **dict.fromkeys(("bf16", "bf16-mixed"), (True, False, None)),
    **dict.fromkeys(("64", "64-true"), (False, False, "float64")),
    "bf16-true": (False, False, "bfloat16"),
    "16-true": (False, False, "float16"),
}


def _precision(node: Node) -> Moved:
    word = str(node.plain())
    if word not in PRECISIONS:
        raise ConfigError(f"must be one of {', '.join(PRECISIONS)}{did_you_mean(word, PRECISIONS)}")
    keys = ("bf16", "fp16", "weights_dtype")
    return [(key, _value(node, value)) for key, value in zip(keys, PRECISIONS[word], strict=True)]


def _clip(node: Node) -> Moved:
    return [("max_grad_norm", _value(node, 0.0) if node.value is None else node)]


def _checkpointing_switch(node: Node) -> Moved:
    return [] if _switch(node) else [("save_strategy", _value(node, "no")), ("checkpointing", _value(node, None))]


def _warm_up(node: Node) -> Moved:
    """A number counts steps; a mapping holds `steps`, `epochs` or `ratio`, and may count `steps` in epochs."""
    if not node.is_mapping:
        return [("warmup_steps", _value(node, 0) if node.value is None else node)]
    homes = {"steps": "warmup_steps", "epochs": "warmup_epochs", "ratio": "warmup_ratio"}
    interval = node.value.get("interval")
    if interval is not None and interval.value not in ("step", "epoch"):
        raise ConfigError(f"`interval: {interval.value}` must be step or epoch")
    if interval is not None and interval.value == "epoch":
        homes["steps"] = "warmup_epochs"
    unknown = [name for name in node.value if name not in (*homes, "interval")]
    if unknown:
        raise ConfigError(f"has no key `{unknown[0]}`{did_you_mean(unknown[0], (*homes, 'interval'))}")
    lengths = [(homes[name], child) for name, child in node.value.items() if name != "interval"]
    if not lengths:
        raise ConfigError("needs `steps`, `epochs` or `ratio`")
    return lengths


SCHEDULER_SETS = ("none", "exponential", "reducelronplateau")  # files in configs/scheduler/
SCHEDULER_WORDS = {
    "none": "constant",
    "exponential": "ExponentialLR",
    "step": "StepLR",
    "plateau": "ReduceLROnPlateau",
    "reducelronplateau": "ReduceLROnPlateau",
}


def _scheduler_word(node: Node) -> Moved:
    word = "none" if node.value is None else str(node.plain())
    if word in SCHEDULER_SETS:
        return [("scheduler", _value(node, word))]
    return [("lr_scheduler_type", _value(node, SCHEDULER_WORDS.get(word, word)))]


def _lr_scheduler(node: Node) -> Moved:
    """A word, or Lightning's mapping with `class_name`.

    Where scripts say `exponential`, the rate falls by equal factors every step, to min_lr at the end.
    """
    if not node.is_mapping and node.value == "exponential":
        return [("scheduler", _value(node, {"name": "ExponentialLR", "interval": "step"}))]
    if not node.is_mapping:
        return _scheduler_word(node)
    return [("scheduler", Node(_renamed(node, "class_name"), node.origin))]


def _renamed(node: Node, name_key: str) -> dict[str, Node]:
    """The mapping with `name` in place of the other word for it."""
    if name_key in node.value and "name" in node.value:
        raise ConfigError(f"has `{name_key}` and `name`; keep one")
    return {("name" if key == name_key else key): child for key, child in node.value.items()}


def _optimizer_word(node: Node) -> Moved:
    return [("optimizer", node)]


def _builder(section: str, name_key: str) -> Callable[[Node], Moved]:
    """Hydra's builder group: the section under another name, or the name of a set."""

    def move(node: Node) -> Moved:
        if not node.is_mapping:
            return [(section, node)] if node.value is not None else []
        keys = _renamed(node, name_key)
        name = keys.get("name")
        if section == "scheduler" and name is not None:
            if name.value == "exponential":
                keys.setdefault("gamma", _value(name, 0.9))
            word = "none" if name.value is None else str(name.plain())
            keys["name"] = _value(name, SCHEDULER_WORDS.get(word, word))
        return [(section, Node(keys, node.origin))]

    return move


def _batch_size(node: Node) -> Moved:
    return [("per_device_train_batch_size", node), ("per_device_eval_batch_size", node)]


def _sanity_check(node: Node) -> Moved:
    if isinstance(node.value, bool) or not isinstance(node.value, int):
        raise ConfigError("must be a whole number")
    return [("eval_on_start", _value(node, node.value != 0))]


def _validation_interval(node: Node) -> Moved:
    if node.value == 1.0 and isinstance(node.value, float):  # once an epoch, their default
        return [("check_val_every_n_epoch", _value(node, 1))]
    if isinstance(node.value, bool) or not isinstance(node.value, int):
        raise ConfigError(
            "is a number of steps here; a share of an epoch is not available, use check_val_every_n_epoch"
        )
    return [("eval_steps", node)]


def _progress_bar(node: Node) -> Moved:
    return [("disable_tqdm", _value(node, not _switch(node)))]


def _cadence(node: Node) -> Moved:
    return [("checkpointing.every_n_epochs", node)] if node.value is not None else []


def _logger(node: Node) -> Moved:
    if node.value is True:
        return []
    if node.value is False or node.value is None:
        return [("logging", _value(node, {"logger_type": None}))]
    raise ConfigError("is written as the section `logging: {logger_type: …}`")


SIGNALS = NotYet("a setting of the signal models")
TRACKING = NotYet("a setting of the tracking models")
IMAGES = NotYet("a setting of the image classification data")
MIXUP = NotYet("MixUp is part of the signal workload")
TEXT = NotYet("text over signals is part of the signal workload")

# Their key -> our key, or a function from the value to pairs (our key, value), or why it is not available yet.
LIGHTNING = {
    "lr": "learning_rate",
    "weight_decay": "weight_decay",
    "resume_lr": "resume_lr",
    "resume_weight_decay": "resume_weight_decay",
    "resume_context": SIGNALS,
    "resume_token_corruption": SIGNALS,
    "compile": "torch_compile",
    "benchmark_train_step": "benchmark_train_step",
    "no_decay_verbose": "no_decay_verbose",
    "grad_clip_threshold": "grad_clip_threshold",
    "lr_scheduler": _lr_scheduler,
    "lr_warmup": _warm_up,
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
    "checkpoint_cadence_epochs": _cadence,
    "validate_before_resume": "validate_before_resume",
    "callbacks": "callbacks",
    "logger": _logger,
}
LOADER = {
    "batch_size": _batch_size,
    "num_workers": "dataloader_num_workers",
    "prefetch_factor": "dataloader_prefetch_factor",
    "pin_memory": "dataloader_pin_memory",
    "persistent_workers": "dataloader_persistent_workers",
    "drop_last": "dataloader_drop_last",
    "shuffle": "shuffle",
    "mixup_alpha": MIXUP,
    "mixup_prob": MIXUP,
    "num_classes": MIXUP,
    "quantize": MIXUP,
    "mu": MIXUP,
    "max_val": MIXUP,
    "tokenizer_path": TEXT,
    "max_length": TEXT,
    "use_separator": TEXT,
}
EVAL_LOADER = {
    "batch_size": "per_device_eval_batch_size",
    "num_workers": "eval_num_workers",
    "shuffle": "eval_shuffle",
}
TABLE: dict[str, object] = {
    **{f"lightning.{key}": home for key, home in LIGHTNING.items()},
    **{f"trainer.{key}": home for key, home in TRAINER.items()},
    **{f"dataloader.{key}": home for key, home in LOADER.items()},
    **{f"dataloader.train_dataloader.{key}": LOADER[key] for key in list(LOADER)[:7] if key != "batch_size"},
    "dataloader.train_dataloader.batch_size": "per_device_train_batch_size",
    **{f"dataloader.val_dataloader.{key}": home for key, home in EVAL_LOADER.items()},
    **{f"dataloader.test_dataloader.{key}": NotYet("train.py evaluates no test set") for key in EVAL_LOADER},
    # The same words at the top of a file
    **{key: TRAINER[key] for key in ("max_epochs", "precision", "gradient_clip_val", "log_every_n_steps")},
    **{key: TRAINER[key] for key in ("accumulate_grad_batches", "enable_checkpointing", "checkpoint_cadence_epochs")},
    **{key: LIGHTNING[key] for key in ("lr", "lr_scheduler", "lr_warmup", "compile", "resume_context")},
    "resume_token_corruption": SIGNALS,
    "warmup": _warm_up,
    "resume.lr": "resume_lr",
    "resume.weight_decay": "resume_weight_decay",
    "resume.validate": "validate_before_resume",
    "resume.context": SIGNALS,
    "resume.token_corruption": SIGNALS,
    "epochs": "num_train_epochs",
    "batch_size": _batch_size,
    "checkpoint_every": _cadence,
    "save_dir": "output_dir",
    "resume_from": "resume_from_checkpoint",
    "optimizer_name": _optimizer_word,
    "scheduler_name": _scheduler_word,
    "base_model_path": "model_name_or_path",
    "optimizer_builder": _builder("optimizer", "optimizer_name"),
    "scheduler_builder": _builder("scheduler", "scheduler_name"),
    "train_builder.epochs": "num_train_epochs",
    "train_builder.checkpoint_every": _cadence,
    "model_builder.base_model_path": "model_name_or_path",
    "model_builder.labels": IMAGES,
    "model_builder.hf_models_dir": IMAGES,
    "model_builder.finetuned_models_dir": IMAGES,
    "labels": IMAGES,
    "hf_models_dir": IMAGES,
    "finetuned_models_dir": IMAGES,
    "dataset_base_dir": IMAGES,
    "dataset_config_name": IMAGES,
    "train_split": IMAGES,
    "dataset.dataset_base_dir": IMAGES,
    "dataset.dataset_config_name": IMAGES,
    "dataset.train_split": IMAGES,
    "dataloader_class": _only("DataLoader", None),
    "model_name": SIGNALS,
    "loss_name": SIGNALS,
    "datasplitter": SIGNALS,
    "eval_runner": SIGNALS,
    "model.ckpt_path": "resume_from_checkpoint",
    **{f"loss.{key}": TRACKING for key in ("neg_unmatched", "epsilon", "asso_weight")},
    **word_table(),
    **{f"dataset.{key}": TRACKING for key in ("train_dataset", "val_dataset", "test_dataset")},
    "model.embedding_meta": TRACKING,
    "model.encoder_cfg": TRACKING,
}
DATALOADER_CLASSES = {"MixupDataLoader": MIXUP, "TextDataLoader": TEXT}
# Keys of a tracking model that a model here may have as well: refused as «not yet» only when the model lacks them.
TRACKING_MODEL_KEYS = (
    "d_model", "nhead", "num_encoder_layers", "num_decoder_layers", "dropout", "activation", "return_intermediate_dec",
    "norm", "num_layers_attn_head", "dropout_attn_head", "return_embedding", "decoder_self_attn",
)  # fmt: skip
# Mappings that exist only in other systems' files.
FOREIGN_SECTIONS = (
    "lightning", "trainer", "dataloader", "resume", "loss", "train_builder", "model_builder", "dataloader_builder",
)  # fmt: skip


# Keys that null takes away again; of any other key null says nothing.
NULLABLE = {*OPTIONAL_SECTIONS, "resume_lr", "resume_weight_decay", "strategy", "callbacks", "check_val_every_n_epoch"}


def foreign_words() -> frozenset[str]:
    """Top-level keys that are read as ours."""
    words = {name for name, path in word_paths().items() if path is None}
    return frozenset(path for path in TABLE if "." not in path) | frozenset(FOREIGN_SECTIONS) | words


def translate(tree: Node, problems: Problems) -> None:
    """Replaces other systems' keys in one layer by ours, in place; what each became goes to `problems.notes`."""
    _dataloader_builder(tree, problems)
    _inherited_interval(tree)
    translate_words(tree, problems)
    for path, node in list(_foreign(tree, "")):
        home = TABLE.get(path)
        if path == "dataloader_class":
            home = DATALOADER_CLASSES.get(str(node.value), home)
        shown = f"`{path}`{node.origin.place}"
        if isinstance(home, NotYet):
            if node.value is not None:
                problems.add(f"not available yet: {shown}: {home}")
        elif home is None:
            problems.add(f"unknown key {shown}{did_you_mean(path, TABLE) or '; --print_schema lists every key'}")
        else:
            _put(tree, path, node, home, problems)
        _remove(tree, path)
    for section in FOREIGN_SECTIONS:
        tree.value.pop(section, None)


def _dataloader_builder(tree: Node, problems: Problems) -> None:
    """`dataloader_builder:` holds what `dataloader:` holds."""
    builder = tree.value.pop("dataloader_builder", None)
    if builder is None:
        return
    section = tree.value.setdefault("dataloader", Node({}, builder.origin))
    if section.is_mapping and builder.is_mapping:
        for key, child in builder.value.items():
            if key in section.value:
                problems.add(
                    f"`dataloader_builder.{key}`{child.origin.place} and `dataloader.{key}` are the same; keep one"
                )
            section.value.setdefault(key, child)


def _inherited_interval(tree: Node) -> None:
    """A warm-up without an interval has that of the scheduler beside it, where one is given."""
    section = tree.value.get("lightning")
    if section is None or not section.is_mapping:
        return
    warm, scheduler = section.value.get("lr_warmup"), section.value.get("lr_scheduler")
    if warm is not None and scheduler is not None and warm.is_mapping and scheduler.is_mapping:
        interval = scheduler.value.get("interval")
        if interval is not None:
            warm.value.setdefault("interval", interval)


def _foreign(node: Node, path: str) -> Iterator[tuple[str, Node]]:
    """Every node that the table names, or that lies in a foreign section without being named."""
    for key, child in node.value.items():
        below = f"{path}.{key}" if path else key
        if below in TABLE:
            yield below, child
        elif child.is_mapping and any(each.startswith(f"{below}.") for each in TABLE):
            yield from _foreign(child, below)
        elif child.value is None and any(each.startswith(f"{below}.") for each in TABLE):
            continue  # a section left empty
        elif below.split(".")[0] in FOREIGN_SECTIONS:
            yield below, child


def _put(tree: Node, path: str, node: Node, home: object, problems: Problems) -> None:
    """One foreign value at its place in our tree."""
    if callable(home):
        try:
            moved = home(node)
        except ConfigError as error:
            shown = path if node.is_mapping else f"{path}: {node.text or node.value}"
            problems.add(f"`{shown}`{node.origin.place} {error}")
            return
    else:
        moved = [(home, node)] if node.value is not None or home in NULLABLE else []
    for target, value in moved:
        other = find(tree, target)
        disjoint = (
            other is not None and other.is_mapping and value.is_mapping and not set(other.value) & set(value.value)
        )
        if other is not None and not disjoint:
            problems.add(
                f"`{path}`{node.origin.place} and `{target}`{other.origin.place} are the same setting; keep one"
            )
            continue
        _insert(tree, target, value)
    if moved:
        became = ", ".join(f"`{target}`" + _shown(value) for target, value in moved)
        problems.note(f"{path} ({node.origin}) is {became}")


def _shown(node: Node) -> str:
    plain = node.plain()
    return "" if isinstance(plain, (dict, list)) else f": {'null' if plain is None else str(plain)}"


def _insert(tree: Node, path: str, node: Node) -> None:
    *sections, key = path.split(".")
    for section in sections:
        below = tree.value.get(section)
        if below is None or not below.is_mapping:
            below = tree.value[section] = Node({}, node.origin)
        tree = below
    if key in tree.value and tree.value[key].is_mapping and node.is_mapping:
        for name, child in node.value.items():
            tree.value[key].value.setdefault(name, child)
    else:
        tree.value[key] = Node(node.value, node.origin, node.text, node.replaces)


def _remove(tree: Node, path: str) -> None:
    *sections, key = path.split(".")
    for section in sections:
        tree = tree.value.get(section)
        if tree is None or not tree.is_mapping:
            return
    tree.value.pop(key, None)
