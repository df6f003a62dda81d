"""Explain a flag that does not exist: where its key belongs, or which flag is meant."""

from __future__ import annotations

from collections.abc import Collection

from loader.schema.keys import section_of
from loader.sources.key_aliases import yaml_keys
from storage.suggestions import nearest

FLAG_CUTOFF = 0.8  # similarity from which a flag is taken for a misspelt one
BELONGS_TO = {"dataset": "the data", "model": "the model", "loss": "the loss", "env": "the environment"}
# Flags of other programs -> the key that means the same here, or the key and its value.
SYNONYMS = {
    **dict.fromkeys(("device", "use_gpu", "cuda"), "accelerator"),
    **dict.fromkeys(("gpu", "gpus", "n_gpus", "num_gpus"), "devices"),
    **dict.fromkeys(("workers", "num_workers", "n_workers"), "dataloader_num_workers"),
    **dict.fromkeys(("steps", "num_steps", "total_steps", "train_steps", "num_train_steps"), "max_steps"),
    **dict.fromkeys(("n_epochs", "num_epochs", "train_epochs"), "num_train_epochs"),
    **dict.fromkeys(("bs", "batch", "train_batch_size"), "per_device_train_batch_size"),
    **dict.fromkeys(("eval_batch_size", "val_batch_size"), "per_device_eval_batch_size"),
    **dict.fromkeys(("eval_freq", "eval_every", "val_interval", "val_every"), "eval_steps"),
    **dict.fromkeys(("save_freq", "save_every", "save_interval", "checkpoint_interval"), "save_steps"),
    **dict.fromkeys(("log_freq", "log_every", "log_steps"), "logging_steps"),
    **dict.fromkeys(("resume", "resume_from", "checkpoint"), "resume_from_checkpoint"),
    **dict.fromkeys(("config", "config_file", "recipe"), "training_config"),
    **dict.fromkeys(("task", "env"), "task_name"),
    **dict.fromkeys(("out", "output", "save_dir", "log_dir"), "output_dir"),
    **dict.fromkeys(("wd", "l2"), "weight_decay"),
    **dict.fromkeys(("clip", "clip_grad", "gradient_clip"), "max_grad_norm"),
    **dict.fromkeys(("accumulate", "grad_accum", "accumulation_steps"), "gradient_accumulation_steps"),
    **dict.fromkeys(("logger",), "report_to"),
    **dict.fromkeys(("use_wandb", "wandb", "wandb_log"), "report_to=wandb"),
    "wandb_project": "logging.project",
    **dict.fromkeys(("wandb_run_name", "wandb_name", "experiment_name"), "run_name"),
    "evaluation_strategy": "eval_strategy",
    **dict.fromkeys(("max_seq_length", "max_seq_len", "max_length", "seq_len", "seq_length"), "dataset.block_size"),
    "group_by_length": "train_sampling_strategy=group_by_length",
    **dict.fromkeys(("data", "data_dir", "data_path", "dataset_path", "dataset_dir"), "dataset.path"),
    **dict.fromkeys(("chunk_len", "action_chunk", "horizon", "action_horizon"), "dataset.chunk_size"),
    **dict.fromkeys(("val_split", "val_fraction", "val_ratio"), "dataset.eval_fraction"),
}


def explain_unknown(words: list[str], options: Collection[str]) -> list[str]:
    """One line for each unknown flag.

    Args:
        words: What the parser did not understand: flags, and the values after them.
        options: All flags that exist.
    """
    lines = []
    for position, word in enumerate(words):
        if not word.startswith("-"):
            if not lines:
                is_file = word.endswith((".yaml", ".yml"))
                remedy = (
                    f"name the file by --training_config {word}"
                    if is_file
                    else "flags are written --name value; nor is it a folder to train on"
                )
                lines.append(f"`{word}` is not a flag; {remedy}")
            continue
        flag, equals, value = word.partition("=")
        if not equals and position + 1 < len(words) and not words[position + 1].startswith("--"):
            value = words[position + 1]
        remedy = _remedy(flag.lstrip("-").replace("-", "_"), value or "value", options)
        lines.append(f"unknown flag `{flag}`{remedy or '; --help lists the flags, --set key=value sets any YAML key'}")
    return lines


def _remedy(key: str, value: str, options: Collection[str]) -> str:
    """Where a key belongs, or the flag that is meant; empty if neither is known."""
    synonym = SYNONYMS.get(key)
    if synonym is not None:
        synonym, equals, meant = synonym.partition("=")
        value = meant if equals else value
        written = f"--{synonym} {value}" if f"--{synonym}" in options else f"--set {synonym}={value}"
        return f": the key is `{synonym}`: {written}"
    for known in (key, key.removeprefix("no_")):
        if known.split(".")[0] in yaml_keys():
            return (
                f": `{known}` is a process parameter: put it in YAML (`{known}: …` in the file given to "
                f"--training_config) or use --set {known}=value"
            )
    if section := section_of(key):
        return f": `{key}` belongs to {BELONGS_TO[section]}: --set {section}.{key}={value}"
    return nearest_flag(key, options)


def nearest_flag(key: str, options: Collection[str]) -> str:
    """`; did you mean …?` for a misspelt flag; empty if none is similar enough."""
    near = nearest(key.lstrip("-").replace("-", "_"), [option.lstrip("-") for option in options], FLAG_CUTOFF)
    return f"; did you mean `--{near}`?" if near else ""
