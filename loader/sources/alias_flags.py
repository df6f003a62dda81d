"""Flags in the words of language-model scripts (`--dataset`, `--max_iters`, `--eval_interval` …), and what each sets.

A word is a flag for the command line and a key for YAML. Its `path` is the key of ours that it sets; those without one
set several keys, or mean something only together with others (`translate_words`, `settle_words`).
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from loader.command_line.parser import flag
from loader.errors import Problems, did_you_mean
from loader.sources.config_tree import Node, node_of


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
    prev_run_ckpt: str | None = word("The run that init_from prev_run starts from.")
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
START_WORDS = ("init_from", "gpt2_type", "prev_run_ckpt")
GPT2_TYPES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")


@cache
def word_paths() -> dict[str, str | None]:
    """Word -> the key that it sets; None where `translate_words` or `settle_words` decides."""
    return {each.name: each.metadata["path"] for each in dataclasses.fields(WordArguments)}


def word_table() -> dict[str, str]:
    """Words that set one key, as keys of YAML; those that are keys already have their meaning there."""
    return {name: path for name, path in word_paths().items() if path is not None and name != path.split(".")[0]}


def translate_words(tree: Node, problems: Problems) -> None:
    """The words of one layer that mean more than one key, in place. Those that mean something only together with others
    (`START_WORDS`, `decay_lr`) stay for `settle_words`, which sees all layers."""
    problems.words |= tree.value.keys() & word_paths().keys() - set(SECTION_WORDS)
    _modes(tree, problems)
    interval = tree.value.pop("eval_interval", None)
    if interval is None:
        return
    if "eval_steps" in tree.value:
        problems.add(_same("eval_interval", interval, "eval_steps", tree.value["eval_steps"]))
    elif isinstance(interval.value, int) and interval.value < 1:
        problems.add(f"`eval_interval: {interval.value}`{interval.origin.place} must be at least 1")
    else:
        tree.value["eval_steps"] = interval
        tree.value.setdefault("save_steps", interval)
        problems.note(f"eval_interval ({interval.origin}) is `eval_steps` and `save_steps`: {interval.value}")


def _modes(tree: Node, problems: Problems) -> None:
    """Lists of data sets, each of one training mode."""
    mode = tree.value.get("training_mode")
    for word, its in (("dataset_list", "multidataset"), ("multicontext_datasets", "multicontext")):
        node = tree.value.get(word)
        if node is not None and mode is not None and mode.value != its:
            problems.add(
                f"`{word}`{node.origin.place} is of `training_mode: {its}`, not of {mode.value}{mode.origin.place}"
            )


def settle_words(layers: list[Node], problems: Problems) -> None:
    """Words that mean something together, over all layers: the latest of each counts, and is written as our keys into
    the layer that said it. In place; the words themselves are gone afterwards."""
    _initial_weights(layers, problems)
    _decay(layers, problems)


def _taken(layers: list[Node], word: str) -> tuple[int, Node | None]:
    """The number of the latest layer with a word, and its node; the word leaves all layers. A null says nothing."""
    found: tuple[int, Node | None] = (-1, None)
    for number, layer in enumerate(layers):
        node = layer.value.pop(word, None)
        if node is not None and node.value is not None:
            found = number, node
    return found


def said_start(layers: list[Node]) -> str | None:
    """What the latest `init_from` of all layers says."""
    words = [layer.value["init_from"].value for layer in layers if "init_from" in layer.value]
    return str(words[-1]) if words and words[-1] is not None else None


def _initial_weights(layers: list[Node], problems: Problems) -> None:
    """`init_from` with `gpt2_type` or `prev_run_ckpt`: which network, and whose weights."""
    (at, start), (kind_at, kind), (earlier_at, earlier) = (_taken(layers, word) for word in START_WORDS)
    for word, node in (("init_from", start), ("gpt2_type", kind), ("prev_run_ckpt", earlier)):
        if node is not None and not str(node.value).strip():
            problems.add(f"`{word}`{node.origin.place} is empty; leave it out")
            return
    name = "" if start is None else str(start.value)
    is_gpt2 = name in GPT2_TYPES
    for word, node, number, fits, needs in (
        ("gpt2_type", kind, kind_at, is_gpt2, "gpt2"),
        ("prev_run_ckpt", earlier, earlier_at, name == "prev_run", "prev_run"),
    ):
        if node is not None and not fits and number >= at:
            beside = f" with `init_from: {name}`{start.origin.place}" if start is not None else ""
            problems.add(
                f"`{word}: {node.value}`{node.origin.place} would do nothing{beside}; set init_from {needs}, or leave "
                "it out"
            )
            return
    if start is None:
        return
    keys: dict[str, object] = {"model_name_or_path": None, "is_pretrained": False, "load_optimizer": False}
    if name == "resume":
        keys = {"resume_from_checkpoint": "newest"}
    elif name == "prev_run":
        if earlier is None:
            problems.add(f"`init_from: prev_run`{start.origin.place} needs `prev_run_ckpt`, the run it starts from")
            return
        keys = {"model_name_or_path": str(earlier.value), "is_pretrained": True, "load_optimizer": True}
    elif is_gpt2:
        if kind is not None and kind_at == at and name != "gpt2" and name != kind.value:
            problems.add(f"`init_from: {name}`{start.origin.place} and `gpt2_type: {kind.value}` contradict; keep one")
            return
        chosen = name if kind is None or kind_at < at and name != "gpt2" else str(kind.value)
        if kind is not None and not _is_gpt2(chosen):
            remedy = did_you_mean(chosen, GPT2_TYPES) or f"; there are {', '.join(GPT2_TYPES)}, a hub id, a folder"
            problems.add(f"`gpt2_type: {chosen}`{kind.origin.place} is none of GPT-2's{remedy}")
            return
        keys |= {"model_config": "gpt", "model_name_or_path": chosen}
    elif name != "scratch":
        keys |= {"model_config": "auto", "model_name_or_path": name}
    _write(layers[at], keys, start, problems)


def _is_gpt2(word: str) -> bool:
    return word in GPT2_TYPES or "/" in word or os.path.isdir(os.path.expanduser(word))


def _write(layer: Node, keys: dict[str, object], start: Node, problems: Problems) -> None:
    """What `init_from` comes to, in the layer that says it: later layers' own words still win."""
    for key, value in keys.items():
        if key not in layer.value:
            layer.value[key] = node_of(value, start.origin)
        elif value not in (None, False):  # false and null only undo what an earlier layer said
            problems.add(_same("init_from", start, key, layer.value[key]))
    said = {key: value for key, value in keys.items() if value not in (None, False)}
    became = ", ".join(f"`{key}: {value}`" for key, value in said.items()) or "random weights"
    problems.note(f"init_from {start.value} ({start.origin}) is {became}")


def _decay(layers: list[Node], problems: Problems) -> None:
    """`decay_lr`: true is a cosine unless another schedule is named, false is none."""
    at, decay = _taken(layers, "decay_lr")
    if decay is None:
        return
    if not isinstance(decay.value, bool):
        problems.add(f"`decay_lr: {decay.text or decay.value}`{decay.origin.place} must be true or false")
        return
    named = [number for number, layer in enumerate(layers) if "lr_scheduler_type" in layer.value]
    last = named[-1] if named else -1
    if last > at:
        return  # a later layer names the schedule itself
    schedule = layers[last].value["lr_scheduler_type"] if named else None
    is_constant = schedule is not None and schedule.value == "constant"
    if last == at and is_constant == decay.value:
        problems.add(
            f"`decay_lr: {str(decay.value).lower()}`{decay.origin.place} contradicts the schedule "
            f"`{schedule.value}`{schedule.origin.place}; leave one out"
        )
    elif (schedule is None or is_constant) if decay.value else not is_constant:
        layers[at].value["lr_scheduler_type"] = node_of("cosine" if decay.value else "constant", decay.origin)


def _same(one: str, first: Node, other: str, second: Node) -> str:
    return f"`{one}`{first.origin.place} and `{other}`{second.origin.place} are the same setting; keep one"
