"""Find contradictions in the process parameters of adaptation, before torch is imported."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

# Files of an adapted model; see `models.adapt.adapted_model`.
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
# What saving, loading and resuming call.
NEEDED_OF_NETWORK = ("save_pretrained", "from_pretrained", "config")
WORDS = re.compile(r"[\w.\-]+(\s*,\s*[\w.\-]+)*")  # no regular expression
INSTALL_BITSANDBYTES = "quantization needs the package bitsandbytes: pip install bitsandbytes"


def words_of(value: Any) -> list[str]:
    """Return a list of patterns, also if the user wrote a single one without brackets, or words with commas."""
    if isinstance(value, str):
        return re.split(r"\s*,\s*", value) if WORDS.fullmatch(value) else [value]
    return list(value or ())


def check_network(model: Any, module: ModuleType) -> None:
    """Raise ValueError if what a module's `build` returned cannot be trained and saved."""
    from torch import nn

    if not isinstance(model, nn.Module):
        raise ValueError(f"`build` of {module.__name__} returned a {type(model).__name__}, not a torch.nn.Module")
    if missing := [name for name in NEEDED_OF_NETWORK if not hasattr(model, name)]:
        raise ValueError(
            f"the network {type(model).__name__} of {module.__name__} cannot be saved: it has no `{missing[0]}`; "
            "derive it from transformers.PreTrainedModel, as docs/extending.md shows"
        )


def check(module_parts: Mapping[str, str] | None, process: Any, module_keys: Collection[str] = ()) -> list[str]:
    """Return every contradiction in `process`, one line each.

    Args:
        module_parts: the model module's PARTS; None or empty: known only once the model is built.
        module_keys: the model module's PROCESS_KEYS.
    """
    return [*_weights(process, module_keys), *_quantization(process), *_lora(process), *_parts(module_parts, process)]


def _weights(process: Any, module_keys: Collection[str]) -> Iterator[str]:
    path = process.model_name_or_path
    given = [key for key in ("is_pretrained", "load_pretrain") if getattr(process, key)]
    if len(given) == 2:
        yield (
            "`is_pretrained` (all weights of a checkpoint) and `load_pretrain` (those that fit) exclude each other; "
            "set one of them to false"
        )
    if given and not path:
        yield f"`{given[0]}` needs `model_name_or_path`: the folder of an earlier run or checkpoint"
    if not path:
        return
    if not given and "model_name_or_path" not in module_keys:
        yield (
            f"`model_name_or_path: {path}` does not say how this model is to use it: set `is_pretrained` (one of our "
            "checkpoints, all weights) or `load_pretrain` (the weights that fit); a pretrained image backbone is named "
            "by model.backbone_weights"
        )
    place = Path(os.path.expanduser(path))
    exists = place.is_dir() or (place.is_file() and not given)  # a .gguf file
    if (given or _looks_local(path) or path.endswith(".gguf")) and not exists:
        yield f"`model_name_or_path: {path}` is not a folder; name one that exists, or a hub id"


def _quantization(process: Any) -> Iterator[str]:
    if process.use_quantization and process.bits == 16:
        yield "`use_quantization` with `bits: 16` quantizes nothing; set bits to 4 or 8, or use_quantization to false"
    elif process.use_quantization and importlib.util.find_spec("bitsandbytes") is None:
        yield f"`use_quantization`: {INSTALL_BITSANDBYTES}"


def _lora(process: Any) -> Iterator[str]:
    if not process.lora_enable:
        return
    if importlib.util.find_spec("peft") is None:
        yield "lora_enable needs the package peft: pip install peft"
    words, path = words_of(process.lora_module), process.lora_weight_path
    if not words or not all(words):
        yield "`lora_module` is empty; name parts or modules, or all-linear"
    if path and _looks_local(path) and not Path(os.path.expanduser(path)).is_dir():
        yield f"`lora_weight_path: {path}` is not a folder; name a folder with an adapter_config.json"


def _parts(parts: Mapping[str, str] | None, process: Any) -> list[str]:
    """Report requested parts that the model does not have."""
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
    """Return whether a path cannot be a hub id (`a/b`): it has more slashes, or begins with `/`, `.` or `~`."""
    return path.startswith(("/", ".", "~")) or path.count("/") > 1 or path.endswith("/")
