"""Flags in the words of language-model scripts (`--dataset`, `--max_iters`, `--eval_interval` …), and what each sets.

A word is a flag for the command line and a key for YAML. Its `path` is the key of ours that it sets; words without one
mean something together with others and are explained in `translate_words`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from .errors import Problems
from .hyper import flag
from .tree import Node, node_of


def word(help: str, path: str | None = None) -> Any:
    """A flag that leaves no trace unless it is given."""
    return flag(None, help, path=path)


@dataclass
class WordArguments:
    """Every field is a word. Lists are written with spaces between their entries."""

    # Data
    dataset: str | None = word("Data set: a name ($KEEL_HOME/datasets/NAME, data/NAME) or a folder.", "dataset.path")
    training_mode: Literal["single", "multidataset", "multicontext"] | None = word(
        "One data set, several in turn, or several position by position.", "dataset.mode"
    )
    dataset_list: list[str] | None = word("The data sets of training_mode multidataset.", "dataset.path")
    dataset_sampling_probs: list[float] | None = word(
        "How often each data set of dataset_list is drawn.", "dataset.sampling_probs"
    )
    dataset_sampling_probs_final: list[float] | None = word(
        "The same at the end of the run.", "dataset.sampling_probs_final"
    )
    dataset_sampling_probs_transition_method: str | None = word(
        "How the one becomes the other: linear, cosine, exponential.", "dataset.sampling_transition"
    )
    dataset_interleaving: bool | None = word("Take turns in these proportions, undrawn.", "dataset.interleave")
    multidataset_wte: bool | None = word("An embedding and a head for each data set.", "dataset.separate_embeddings")
    multicontext_datasets: list[str] | None = word("The data sets of training_mode multicontext.", "dataset.path")
    block_size: int | None = word("Tokens of one sample.", "dataset.block_size")
    # Length, logs, output
    out_dir: str | None = word("Output directory.", "output_dir")
    batch_size: int | None = word("Sequences per device, in training and evaluation.", "batch_size")
    max_iters: int | None = word("Number of training steps.", "max_steps")
    eval_interval: int | None = word("Steps between evaluations, each followed by a checkpoint.")
    eval_iters: int | None = word("Batches of an evaluation.", "limit_val_batches")
    log_interval: int | None = word("Steps between log lines.", "logging_steps")
    # First weights
    init_from: str | None = word(
        "First weights: scratch, resume (the run in out_dir goes on), prev_run (weights and optimizer of "
        "prev_run_ckpt, from step 0), gpt2, or any causal language model by hub id or path, GGUF too."
    )
    gpt2_type: str | None = word("Which GPT-2: gpt2, gpt2-medium, gpt2-large, gpt2-xl, or a folder.")
    prev_run_ckpt: str | None = word("The run that init_from prev_run starts from.", "model_name_or_path")
    # Model
    n_layer: int | None = word("Layers.", "model.n_layer")
    n_head: int | None = word("Attention heads of each layer.", "model.n_head")
    n_embd: int | None = word("Width.", "model.n_embd")
    dropout: float | None = word("Dropout.", "model.dropout")
    bias: bool | None = word("Biases in linear layers and norms.", "model.bias")
    compile: bool | None = word("Compile the model with torch.compile.", "torch_compile")
    # Optimizer and schedule
    optimizer: str | None = word("Optimizer: adamw, sgd, or any name that optim takes.", "optimizer")
    beta1: float | None = word("Adam's first beta.", "adam_beta1")
    beta2: float | None = word("Adam's second beta.", "adam_beta2")
    grad_clip: float | None = word("Largest gradient norm; 0: no clipping.", "max_grad_norm")
    lr_scheduler: str | None = word("Schedule: none, cosine, exponential, step, plateau …", "lr_scheduler")
    decay_lr: bool | None = word("Decay the learning rate to min_lr: a cosine, unless lr_scheduler names another.")
    warmup_iters: int | None = word("Steps of the warm-up.", "warmup_steps")
    # Samples
    max_sample_tokens: int | None = word("Tokens to generate when the validation loss improves.", "sample_tokens")
    sample_start_tokens: str | None = word("Text that a sample goes on from.", "sample_prompt")
    num_samples: int | None = word("Samples each time.", "sample_count")
    temperature: float | None = word("Temperature of sampling.", "sample_temperature")
    top_k: int | None = word("Sample from the k likeliest tokens.", "sample_top_k")


# Words that are also sections of a training file: there they keep that meaning, as flags they set this.
SECTION_WORDS = ("dataset", "optimizer")
# Words that say that text is to be trained on, where no task is named.
OF_TEXT = (
    "dataset", "training_mode", "dataset_list", "multicontext_datasets", "init_from", "block_size", "n_layer", "n_head",
    "n_embd",
)  # fmt: skip
TEXT_TASK = "text"


@cache
def word_paths() -> dict[str, str | None]:
    """Word -> the key that it sets; None where `translate_words` decides."""
    return {each.name: each.metadata["path"] for each in dataclasses.fields(WordArguments)}


def word_table() -> dict[str, str]:
    """Words that set one key, as keys of YAML; those that are keys already have their meaning there."""
    return {name: path for name, path in word_paths().items() if path is not None and name != path.split(".")[0]}


def translate_words(tree: Node, problems: Problems) -> None:
    """The words of one layer whose meaning depends on one another, in place."""
    _initial_weights(tree, problems)
    _decay(tree, problems)
    interval = tree.value.pop("eval_interval", None)
    if interval is not None:
        if "eval_steps" in tree.value:
            problems.add(_same("eval_interval", interval, "eval_steps", tree.value["eval_steps"]))
        tree.value["eval_steps"] = interval
        tree.value.setdefault("save_steps", interval)
        problems.note(f"eval_interval ({interval.origin}) is `eval_steps` and `save_steps`: {interval.value}")


def _initial_weights(tree: Node, problems: Problems) -> None:
    """`init_from`, with `gpt2_type`: which network, and whose weights."""
    start, kind = tree.value.pop("init_from", None), tree.value.pop("gpt2_type", None)
    if start is None:
        if kind is not None:
            _set(tree, {"model_name_or_path": kind.value}, "gpt2_type", kind, problems)
        return
    name = str(start.value)
    if kind is not None and not name.startswith("gpt2"):
        problems.add(
            f"`gpt2_type: {kind.value}`{kind.origin.place} would do nothing with `init_from: {name}`"
            f"{start.origin.place}; leave it out, or set init_from gpt2"
        )
    if name == "scratch":
        keys: dict[str, object] = {"model_name_or_path": None}
    elif name == "resume":
        keys = {"resume_from_checkpoint": "newest"}
    elif name == "prev_run":
        keys = {"is_pretrained": True, "load_optimizer": True}
    elif name.startswith("gpt2") and "/" not in name:
        keys = {"model_config": "gpt", "model_name_or_path": name if kind is None else kind.value}
    else:
        keys = {"model_config": "auto", "model_name_or_path": name}
    _set(tree, keys, "init_from", start, problems)


def _set(tree: Node, keys: dict[str, object], name: str, node: Node, problems: Problems) -> None:
    for key, value in keys.items():
        if key in tree.value:
            problems.add(_same(name, node, key, tree.value[key]))
        else:
            tree.value[key] = node_of(value, node.origin)
    became = ", ".join(f"`{key}: {'null' if value is None else str(value)}`" for key, value in keys.items())
    problems.note(f"{name} {node.value} ({node.origin}) is {became}")


def _decay(tree: Node, problems: Problems) -> None:
    """`decay_lr`: true is a cosine unless `lr_scheduler` names another schedule, false is none."""
    decay, named = tree.value.pop("decay_lr", None), tree.value.get("lr_scheduler")
    if decay is None:
        return
    if not isinstance(decay.value, bool):
        problems.add(f"`decay_lr: {decay.text or decay.value}`{decay.origin.place} must be true or false")
        return
    is_none = named is not None and named.value in (None, "none", "constant")
    if named is not None and decay.value == is_none:
        problems.add(
            f"`decay_lr: {str(decay.value).lower()}`{decay.origin.place} contradicts `lr_scheduler: {named.value}`"
            f"{named.origin.place}; leave one out"
        )
    elif named is None:
        tree.value["lr_scheduler"] = node_of("cosine" if decay.value else "none", decay.origin)


def _same(one: str, first: Node, other: str, second: Node) -> str:
    return f"`{one}`{first.origin.place} and `{other}`{second.origin.place} are the same setting; keep one"
