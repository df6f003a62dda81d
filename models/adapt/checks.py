"""What is known to be wrong with adaptation before torch is imported."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

# Files of an adapted model; see `models.adapt.adapter_io`.
ADAPTATION = "adaptation.json"
BASE = "base"
QUANTIZED = "quantized.safetensors"

# Names that models give to their parts; one of these that a model lacks is a mistake, not a module's name.
KNOWN_PARTS = ("vision_tower", "vit", "backbone", "llm", "projector", "head", "embeddings")
FLAGGED_PARTS = {
    "freeze_vision_tower": "vision_tower",
    "freeze_backbone": "backbone",
    "tune_mm_mlp_adapter": "projector",
}
INSTALL_BITSANDBYTES = "quantization needs the package bitsandbytes: pip install bitsandbytes"
INSTALL_PEFT = "lora_enable needs the package peft: pip install peft"


def words_of(value: Any) -> list[str]:
    """A list of patterns, also where one was written without its brackets."""
    return [value] if isinstance(value, str) else list(value or ())


def check(module_parts: Mapping[str, str] | None, process: Any, module_keys: Collection[str] = ()) -> list[str]:
    """Every contradiction in `process`, one line each.

    Args:
        module_parts: the model module's PARTS; None or empty: known only once the model is built.
        module_keys: the model module's PROCESS_KEYS.
    """
    return [*_weights(process, module_keys), *_quantization(process), *_lora(process), *_parts(module_parts, process)]


def _weights(process: Any, module_keys: Collection[str]) -> list[str]:
    found, path = [], process.model_name_or_path
    given = [key for key in ("is_pretrained", "load_pretrain") if getattr(process, key)]
    if len(given) == 2:
        found.append(
            "`is_pretrained` (all weights of a checkpoint) and `load_pretrain` (those that fit) exclude each other; "
            "set one of them to false"
        )
    if given and not path:
        found.append(f"`{given[0]}` needs `model_name_or_path`: the folder of an earlier run or checkpoint")
    if path and not given and "model_name_or_path" not in module_keys:
        found.append(unused_path(path))
    place = Path(os.path.expanduser(path or ""))
    is_there = place.is_dir() or (place.is_file() and not given)  # a .gguf file
    if path and (given or _looks_local(path) or path.endswith(".gguf")) and not is_there:
        found.append(f"`model_name_or_path: {path}` is not a folder; name one that exists, or a hub id")
    return found


def unused_path(path: str) -> str:
    """What to say where a model cannot take weights by path alone."""
    return (
        f"`model_name_or_path: {path}` does not say how this model is to use it: set `is_pretrained` (one of our "
        "checkpoints, all weights) or `load_pretrain` (the weights that fit); a pretrained image backbone is named by "
        "model.backbone_weights"
    )


def _quantization(process: Any) -> list[str]:
    if not process.use_quantization:
        return []
    if process.bits == 16:
        return [
            "`use_quantization` with `bits: 16` quantizes nothing; set bits to 4 or 8, or use_quantization to false"
        ]
    if not _installed("bitsandbytes"):
        return [f"`use_quantization`: {INSTALL_BITSANDBYTES}"]
    return []


def _lora(process: Any) -> list[str]:
    if not process.lora_enable:
        return []
    found, path = [], process.lora_weight_path
    if not _installed("peft"):
        found.append(INSTALL_PEFT)
    if not words_of(process.lora_module) or not all(words_of(process.lora_module)):
        found.append("`lora_module` is empty; name parts or modules, or all-linear")
    if path and _looks_local(path) and not Path(os.path.expanduser(path)).is_dir():
        found.append(f"`lora_weight_path: {path}` is not a folder; name a folder with an adapter_config.json")
    return found


def _parts(parts: Mapping[str, str] | None, process: Any) -> list[str]:
    """Parts that are asked for and that the model does not have."""
    if not parts:
        return []
    asked = [(key, part) for key, part in FLAGGED_PARTS.items() if getattr(process, key)]
    asked += [("freeze", word) for word in words_of(process.freeze) if word in KNOWN_PARTS]
    if process.lora_enable:
        asked += [("lora_module", word) for word in words_of(process.lora_module) if word in KNOWN_PARTS]
    has = {*parts, *(["vit"] if "vision_tower" in parts else [])}
    return [
        f"`{key}`: this model has no part `{part}`; it has {', '.join(parts)}" for key, part in asked if part not in has
    ]


def _looks_local(path: str) -> bool:
    """`a/b` may be a hub id; anything else with a slash, a dot or a tilde in front is a folder."""
    return path.startswith(("/", ".", "~")) or path.count("/") > 1 or path.endswith("/")


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
