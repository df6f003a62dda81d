"""Build a GPT with its first weights: random, GPT-2's from transformers, or for one of Keel's checkpoints.

A GPT-2 of transformers has the same weights under other names, with transposed linear layers.
"""

from __future__ import annotations

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
from models.pretrained import from_files, load_checkpoint, load_whole_model, reason, saved_config

# Where a configuration leaves these open, they come from the pretrained model.
SIZES = ("n_layer", "n_head", "n_embd", "bias", "n_kv_head", "mlp", "mlp_ratio", "rope_theta")

# Activation functions as transformers names them -> our `mlp`.
GELU_NAMES = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
# The architecture of GPT-2 in our keys, and the settings in which its relatives differ.
GPT2_OPTIONS = {"position": "learned", "norm": "layernorm", "qk_norm": False}
GPT2_SETTINGS = {
    "activation_function": tuple(GELU_NAMES),
    "layer_norm_epsilon": (NORM_EPS,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}
# Our module in a block, GPT-2's, and whether its weight is transposed.
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
    missing = [] if config.block_size else ["block_size"]
    missing += [] if config.vocab_size or config.vocab_sizes else ["vocab_size"]
    if missing:
        raise ValueError(f"model: {', '.join(missing)} missing; the data set's dims must give them")
    known = {**FROM_SCRATCH, **(_own_sizes(Path(path)) if path else {})}
    if config.position != "rope":
        known.pop("rope_theta", None)
    return _new(config, known)


def _own_sizes(folder: Path) -> dict[str, Any]:
    """Return the sizes of Keel's checkpoint in `folder`; none if there is none, which loading its weights reports."""
    try:
        stored = saved_config(folder)
    except ValueError:
        return {}
    is_ours = stored.get("model_type") == GPTConfig.model_type
    return {key: stored[key] for key in SIZES if stored.get(key) is not None} if is_ours else {}


def _new(config: Config, known: dict[str, Any]) -> GPT:
    """Build the network; `known` has values for keys that the configuration leaves open."""
    filled = {key: value for key, value in known.items() if getattr(config, key) is None}
    return GPT(GPTConfig(**asdict(replace(config, **filled))))


# ---- GPT-2's weights ----


def _from_gpt2(config: Config, path: str, cache_dir: str | None) -> GPT:
    """Build the network with GPT-2's weights; `loaded_from` is their place, and no weight is new.

    Raises:
        ValueError: a key contradicts GPT-2's architecture, or the data does not fit it.
    """
    gpt2, weights = _gpt2(path, cache_dir)
    known = {"n_layer": gpt2.n_layer, "n_head": gpt2.n_head, "n_embd": gpt2.n_embd, "bias": True}
    known["mlp"] = GELU_NAMES[gpt2.activation_function]
    if gpt2.n_inner not in (None, 4 * gpt2.n_embd):
        known["mlp_ratio"] = gpt2.n_inner / gpt2.n_embd
    if config.vocab_sizes is not None:
        raise ValueError(
            f"`model_name_or_path: {path}` has one vocabulary, the data has {len(config.vocab_sizes)}; "
            "share one among the data sets, or start from scratch"
        )
    for key, value in {"mlp_ratio": 4.0, "n_kv_head": gpt2.n_head, **known, **GPT2_OPTIONS}.items():
        if getattr(config, key) not in (None, value):
            remedy = "leave it out" if key in SIZES else f"set it to {str(value).lower()}"
            raise ValueError(f"`model.{key}: {getattr(config, key)}` contradicts {value}, which {path} has; {remedy}")
    block_size = config.block_size or gpt2.n_positions
    if block_size > gpt2.n_positions:
        raise ValueError(
            f"`model.block_size: {block_size}`: {path} has positions for {gpt2.n_positions} tokens only; "
            f"set block_size to {gpt2.n_positions} or less"
        )
    if (config.vocab_size or 0) > gpt2.vocab_size:
        raise ValueError(
            f"the data's vocabulary of {config.vocab_size} tokens is larger than the {gpt2.vocab_size} of {path}; "
            "prepare the data with that model's tokenizer"
        )
    model = _new(replace(config, block_size=block_size, vocab_size=gpt2.vocab_size), known)
    _copy_weights(model, weights)
    model.loaded_from, model.new_weights = path, set()
    return model


def _gpt2(path: str, cache_dir: str | None) -> tuple[GPT2Config, dict[str, Tensor]]:
    """Load configuration and weights of transformers' GPT-2 at `path`, a hub id or a folder.

    Raises:
        ValueError: there is no model, it is another one, or a relative of GPT-2 that computes otherwise.
    """
    options, shown = {"cache_dir": cache_dir, "local_files_only": os.path.isdir(path)}, f"`model_name_or_path: {path}`"
    try:
        model_type = PreTrainedConfig.get_config_dict(path, **options)[0].get("model_type")
    except Exception as error:  # a damaged file may raise anything
        raise ValueError(f"{shown} cannot be loaded: {reason(error)}") from error
    if model_type == GPTConfig.model_type:
        raise ValueError(
            f"{shown} is one of our own checkpoints: set `is_pretrained` (all weights) or `load_pretrain` (the weights "
            "that fit)"
        )
    if model_type != "gpt2":
        model = f"is a {model_type} model" if model_type else "has no config.json with a model_type"
        raise ValueError(f"{shown} {model}; `model: gpt` starts from GPT-2's weights, `model: auto` from any others")
    model = load_whole_model(GPT2LMHeadModel, path, shown, **options)
    for key, supported in GPT2_SETTINGS.items():
        value = getattr(model.config, key)
        if value not in supported:
            raise ValueError(f"{shown} computes with {key}: {value}, gpt with {supported[0]}; use `model: auto` for it")
    return model.config, model.state_dict()


@torch.no_grad()
def _copy_weights(model: GPT, weights: dict[str, Tensor]) -> None:
    """Copy GPT-2's weights. Padding rows of the vocabulary are zero; positions beyond block_size are left out."""
    tables = [("token_embedding", "transformer.wte")]
    tables += [] if model.config.tie_word_embeddings else [("head", "lm_head")]
    for ours, theirs in tables:
        table = model.get_parameter(f"{ours}.weight").zero_()
        table[: model.config.vocab_size] = weights[f"{theirs}.weight"]
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
    if _own_sizes(Path(place)):
        return load_checkpoint(GPT, place)
    config = from_files(GPTConfig, folder, str(folder), local_files_only=True)
    try:
        _, weights = _gpt2(place, cache_dir)
    except ValueError as error:
        raise ValueError(f"the adapter in {folder} was made for {place}: {error}") from error
    model = GPT(config)
    _copy_weights(model, weights)
    return model.eval()
