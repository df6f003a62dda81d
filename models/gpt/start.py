"""Where a GPT begins: random weights, GPT-2's from transformers, or the sizes of one of our own checkpoints.

A GPT-2 of transformers holds the same numbers under other names, its linear layers transposed.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedConfig

from models.gpt.config import FROM_SCRATCH, Config
from models.gpt.layers import NORM_EPS
from models.gpt.network import GPT, GPTConfig
from models.pretrained import from_files, load_checkpoint, reason, refuse_unfilled

# Left open in a configuration, these come from the pretrained model.
SIZES = ("n_layer", "n_head", "n_embd", "bias", "n_kv_head", "mlp", "mlp_ratio", "rope_theta")

# Activation functions as transformers calls them -> our `mlp`.
GELU_NAMES = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
# What GPT-2's weights are made for, in our keys; and the settings in which its relatives differ.
GPT2_OPTIONS = {"position": "learned", "norm": "layernorm", "qk_norm": False}
GPT2_SETTINGS = {
    "activation_function": tuple(GELU_NAMES),
    "layer_norm_epsilon": (NORM_EPS,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}
# Our module in a block, theirs, and whether theirs is transposed.
BLOCK_NAMES = (
    ("attention_norm", "ln_1", False),
    ("attention.qkv", "attn.c_attn", True),
    ("attention.output", "attn.c_proj", True),
    ("mlp_norm", "ln_2", False),
    ("mlp.up", "mlp.c_fc", True),
    ("mlp.down", "mlp.c_proj", True),
)


def build_network(config: Config, process: Any) -> GPT:
    """See `models.gpt.build`."""
    path = process.model_name_or_path and os.path.expanduser(process.model_name_or_path)
    if path and not (process.is_pretrained or process.load_pretrain):
        return _from_gpt2(config, path, process.cache_dir)
    known = _own_sizes(Path(path)) if path else {}
    known = {**FROM_SCRATCH, **{key: value for key, value in known.items() if value is not None}}
    if config.position != "rope":
        known.pop("rope_theta", None)
    return GPT(GPTConfig(**asdict(_complete(config, known))))


def _own_sizes(folder: Path) -> dict[str, Any]:
    """Sizes of the checkpoint of ours in `folder`; what is wrong with it is said where its weights are loaded."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    same = isinstance(found, dict) and found.get("model_type") == GPTConfig.model_type
    return {key: found.get(key) for key in SIZES} if same else {}


def _complete(config: Config, known: dict[str, Any]) -> Config:
    """The configuration with what it leaves open.

    Raises:
        ValueError: the data gave no sizes, or the completed ones contradict each other.
    """
    missing = [] if config.block_size else ["block_size"]
    missing += [] if config.vocab_size or config.vocab_sizes else ["vocab_size"]
    if missing:
        raise ValueError(f"model: {', '.join(missing)} missing; the data set's dims must give them")
    return replace(config, **{key: value for key, value in known.items() if getattr(config, key) is None})


# ---- GPT-2's weights ----


def _from_gpt2(config: Config, path: str, cache_dir: str | None) -> GPT:
    """The network with GPT-2's weights; `loaded_from` says where from, no weight is new."""
    theirs, weights = _gpt2(path, cache_dir)
    known = _gpt2_sizes(theirs)
    _refuse_contradictions(config, known, path)
    block_size = config.block_size or theirs.n_positions
    if block_size > theirs.n_positions:
        raise ValueError(
            f"`model.block_size: {block_size}`: {path} has positions for {theirs.n_positions} tokens only; "
            f"set block_size to {theirs.n_positions} or less"
        )
    if (config.vocab_size or 0) > theirs.vocab_size:
        raise ValueError(
            f"the data's vocabulary of {config.vocab_size} tokens is larger than the {theirs.vocab_size} of {path}; "
            "prepare the data with that model's tokenizer"
        )
    filled = replace(config, block_size=block_size, vocab_size=theirs.vocab_size)
    model = GPT(GPTConfig(**asdict(_complete(filled, known))))
    _take(model, weights)
    model.loaded_from, model.new_weights = path, set()
    return model


def _gpt2_sizes(theirs: GPT2Config) -> dict[str, Any]:
    known = {"n_layer": theirs.n_layer, "n_head": theirs.n_head, "n_embd": theirs.n_embd, "bias": True}
    known["mlp"] = GELU_NAMES[theirs.activation_function]
    if theirs.n_inner not in (None, 4 * theirs.n_embd):
        known["mlp_ratio"] = theirs.n_inner / theirs.n_embd
    return known


def _refuse_contradictions(config: Config, known: dict[str, Any], path: str) -> None:
    """Raise ValueError for a key that was set to what GPT-2's weights are not."""
    if config.vocab_sizes is not None:
        raise ValueError(
            f"`model_name_or_path: {path}` has one vocabulary, the data has {len(config.vocab_sizes)}; "
            "share one among the data sets, or start from scratch"
        )
    wanted = {"mlp_ratio": 4.0, "n_kv_head": known["n_head"], **known, **GPT2_OPTIONS}
    for key, value in wanted.items():
        asked = getattr(config, key)
        if asked is not None and asked != value:
            remedy = "leave it out" if key in SIZES else f"set it to {str(value).lower()}"
            raise ValueError(f"`model.{key}: {asked}` contradicts {value}, which {path} has; {remedy}")


def _gpt2(path: str, cache_dir: str | None) -> tuple[GPT2Config, dict[str, Tensor]]:
    """Configuration and weights of transformers' GPT-2 at `path`, a hub id or a folder.

    Raises:
        ValueError: nothing is there, it is another model, or a relative of GPT-2 that computes otherwise.
    """
    options = {"cache_dir": cache_dir, "local_files_only": os.path.isdir(path)}
    try:
        found = PreTrainedConfig.get_config_dict(path, **options)[0].get("model_type")
    except Exception as error:  # a damaged file may raise anything
        raise ValueError(f"`model_name_or_path: {path}` cannot be loaded: {reason(error)}") from error
    _refuse_other_model(found, path)
    model, report = from_files(
        GPT2LMHeadModel,
        path,
        f"`model_name_or_path: {path}`",
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **options,
    )
    refuse_unfilled(report, path)
    for key, known in GPT2_SETTINGS.items():
        if getattr(model.config, key) not in known:
            raise ValueError(
                f"`model_name_or_path: {path}` computes with {key}: {getattr(model.config, key)}, gpt with {known[0]}; "
                "use `model: auto` for it"
            )
    return model.config, model.state_dict()


def _refuse_other_model(model_type: str | None, path: str) -> None:
    """Raise ValueError unless the model at `path` is a GPT-2 of transformers."""
    if model_type == GPTConfig.model_type:
        raise ValueError(
            f"`model_name_or_path: {path}` is one of our own checkpoints: set `is_pretrained` (all weights) or "
            "`load_pretrain` (the weights that fit)"
        )
    if model_type is None:
        raise ValueError(f"`model_name_or_path: {path}` cannot be loaded: it has no config.json with a model_type")
    if model_type != "gpt2":
        raise ValueError(
            f"`model_name_or_path: {path}` is a {model_type} model, and `model: gpt` starts from GPT-2's weights; "
            "use `model: auto` for it"
        )


@torch.no_grad()
def _take(model: GPT, weights: dict[str, Tensor]) -> None:
    """Copies GPT-2's weights. Rows that fill up the vocabulary are zero, positions past block_size left out."""
    model.token_embedding.weight.zero_()
    model.token_embedding.weight[: model.config.vocab_size] = weights["transformer.wte.weight"]
    if not model.config.tie_word_embeddings:
        model.head.weight.zero_()
        model.head.weight[: model.config.vocab_size] = weights["lm_head.weight"]
    model.position_embedding.weight.copy_(weights["transformer.wpe.weight"][: model.config.block_size])
    pairs = [("norm", "ln_f", False)]
    pairs += [
        (f"blocks.{index}.{ours}", f"h.{index}.{theirs}", transposed)
        for index in range(model.config.n_layer)
        for ours, theirs, transposed in BLOCK_NAMES
    ]
    for ours, theirs, transposed in pairs:
        weight = weights[f"transformer.{theirs}.weight"]
        model.get_parameter(f"{ours}.weight").copy_(weight.T if transposed else weight)
        model.get_parameter(f"{ours}.bias").copy_(weights[f"transformer.{theirs}.bias"])


def load_for_adapter(place: str, folder: Path, cache_dir: str | None) -> GPT:
    """See `models.gpt.load_base`."""
    config_file = Path(place) / "config.json"
    if config_file.is_file() and _own_sizes(Path(place)):
        return load_checkpoint(GPT, place)
    config = from_files(GPTConfig, folder, str(folder), local_files_only=True)
    try:
        _, weights = _gpt2(place, cache_dir)
    except ValueError as error:
        raise ValueError(f"the adapter in {folder} was made for {place}: {error}") from error
    model = GPT(config)
    _take(model, weights)
    return model.eval()
