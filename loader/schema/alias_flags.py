"""Flags in the spelling of other scripts: for language models (`--dataset`, `--max_iters` …) and for tracking.

Each is an alias: its `path` is the key it sets. Those without a path set several keys or depend on others; see
`loader/sources/translate_aliases.py`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from storage.config_keys import key


def alias(help: str, path: str | None = None) -> Any:
    """Declare an alias flag; it has no default, so that only a given flag has an effect."""
    return key(None, help, path=path)


@dataclass
class AliasFlags:
    """Flags of language-model scripts, accepted as flags and as YAML keys. Lists are written with spaces."""

    # Data
    dataset: str | None = alias("Data set: a name ($KEEL_HOME/datasets/NAME, data/NAME) or a folder.", "dataset.path")
    training_mode: Literal["single", "multidataset", "multicontext"] | None = alias(
        "One data set, several in turn, or several position by position.", "dataset.mode"
    )
    dataset_list: list[str] | None = alias("The data sets of training_mode multidataset.", "dataset.path")
    dataset_sampling_probs: list[float] | None = alias(
        "How often each data set of dataset_list is drawn.", "dataset.sampling_probs"
    )
    dataset_sampling_probs_final: list[float] | None = alias(
        "The same at the end of the run.", "dataset.sampling_probs_final"
    )
    dataset_sampling_probs_transition_method: str | None = alias(
        "How the one becomes the other: linear, cosine, exponential.", "dataset.sampling_transition"
    )
    dataset_interleaving: bool | None = alias("Take turns in these proportions, undrawn.", "dataset.interleave")
    multidataset_wte: bool | None = alias("An embedding and a head for each data set.", "dataset.separate_embeddings")
    multicontext_datasets: list[str] | None = alias("The data sets of training_mode multicontext.", "dataset.path")
    block_size: int | None = alias("Tokens of one sample.", "dataset.block_size")
    # Length, logs, output
    epochs: float | None = alias("Number of training epochs.", "num_train_epochs")
    out_dir: str | None = alias("Output directory.", "output_dir")
    batch_size: int | None = alias("Sequences per device, in training and evaluation.", "batch_size")
    max_iters: int | None = alias("Number of training steps.", "max_steps")
    gradient_accumulation_steps: int | None = alias(
        "Micro-batches of one optimizer step.", "gradient_accumulation_steps"
    )
    eval_interval: int | None = alias("Steps between evaluations, each followed by a checkpoint.")
    eval_iters: int | None = alias("Batches of an evaluation.", "limit_val_batches")
    log_interval: int | None = alias("Steps between log lines.", "logging_steps")
    # First weights
    init_from: str | None = alias(
        "First weights: scratch, resume (continue the run in out_dir), prev_run (weights and optimizer of "
        "prev_run_ckpt, from step 0), gpt2, or any causal language model by hub id or path, GGUF too."
    )
    gpt2_type: str | None = alias("Which GPT-2: gpt2, gpt2-medium, gpt2-large, gpt2-xl, or a folder.")
    prev_run_ckpt: str | None = alias("The run that init_from prev_run starts from.")
    # Model
    n_layer: int | None = alias("Layers.", "model.n_layer")
    n_head: int | None = alias("Attention heads of each layer.", "model.n_head")
    n_embd: int | None = alias("Width.", "model.n_embd")
    dropout: float | None = alias("Dropout.", "model.dropout")
    bias: bool | None = alias("Biases in linear layers and norms.", "model.bias")
    compile: bool | None = alias("Compile the model with torch.compile.", "torch_compile")
    # Optimizer and schedule
    lr: float | None = alias("Learning rate.", "learning_rate")
    optimizer: str | None = alias("Optimizer: adamw, sgd, or any name that optim takes.", "optimizer")
    beta1: float | None = alias("Adam's first beta.", "adam_beta1")
    beta2: float | None = alias("Adam's second beta.", "adam_beta2")
    grad_clip: float | None = alias("Largest gradient norm; 0: no clipping.", "max_grad_norm")
    lr_scheduler: str | None = alias("Schedule: none, cosine, exponential, step, plateau …", "lr_scheduler")
    decay_lr: bool | None = alias("Decay the learning rate to min_lr: a cosine, unless lr_scheduler names another.")
    warmup_iters: int | None = alias("Steps of the warm-up.", "warmup_steps")
    # Samples
    max_sample_tokens: int | None = alias("Tokens to generate when the validation loss improves.", "sample_tokens")
    sample_start_tokens: str | None = alias("Text that a sample continues.", "sample_prompt")
    num_samples: int | None = alias("Samples each time.", "sample_count")
    temperature: float | None = alias("Temperature of sampling.", "sample_temperature")
    top_k: int | None = alias("Sample from the k likeliest tokens.", "sample_top_k")


@dataclass
class TrackingFlags:
    """Flags of tracking, accepted as flags and as YAML keys; `--epochs` and `--lr` are among the others."""

    train_dir: list[str] | None = alias(
        "Folders with labels and videos for training; also as bare words.", "dataset.train_dataset.dir.path"
    )
    val_dir: str | None = alias("The same for validation.", "dataset.val_dataset.dir.path")
    crop_size: int | None = alias("Side of the square around each instance, in px.", "dataset.train_dataset.crop_size")
    anchor: str | None = alias("Node that crops are centred on, or centroid.", "dataset.train_dataset.anchors")
    clip_length: int | None = alias("Frames of a clip.", "dataset.train_dataset.clip_length")
    d_model: int | None = alias("Width of the transformer.", "model.d_model")
    nhead: int | None = alias("Attention heads.", "model.nhead")
    encoder_layers: int | None = alias("Layers of the encoder.", "model.num_encoder_layers")
    decoder_layers: int | None = alias("Layers of the decoder.", "model.num_decoder_layers")


ALIAS_FLAGS = (AliasFlags, TrackingFlags)


@cache
def alias_paths() -> dict[str, str | None]:
    """Alias -> the key that it sets; None for those that `loader/sources/translate_aliases.py` resolves."""
    return {field.name: field.metadata["path"] for kind in ALIAS_FLAGS for field in dataclasses.fields(kind)}


# Aliases that are also sections of a training file: as YAML keys they are the section, as flags they set `path`.
SECTION_ALIASES = ("dataset", "optimizer")
# Task -> the keys that imply it where no task is named: aliases, and paths of keys.
IMPLYING_KEYS: dict[str, tuple[str, ...]] = {
    "text": (
        "dataset", "training_mode", "dataset_list", "multicontext_datasets", "init_from", "block_size", "n_layer",
        "n_head", "n_embd",
    ),
    "images": ("model_builder", "dataset_base_dir", "dataset_config_name", "dataset.dataset_config_name"),
    "signals": ("model_name", "datasplitter"),
    "tracking": ("train_dir", "val_dir", "crop_size", "anchor", "clip_length", "dataset.train_dataset"),
}  # fmt: skip
