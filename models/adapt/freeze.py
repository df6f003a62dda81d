"""Which weights stay as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from models.adapt.checks import FLAGGED_PARTS, words_of
from models.adapt.submodules import nothing_found, parameters_in, select


def frozen_and_tuned(model: nn.Module, process: Any, parts: Mapping[str, str]) -> tuple[set[str], set[str]]:
    """Names of the parameters that are frozen by request, and of those that train whatever else is frozen.

    Raises:
        ValueError: a pattern matches nothing, or the model lacks a part.
    """
    frozen: set[str] = set()
    for word in words_of(process.freeze):
        frozen |= parameters_in(model, select(model, word, parts, "freeze"))
    for key in ("freeze_vision_tower", "freeze_backbone"):
        if getattr(process, key):
            frozen |= _part(model, key, parts)
    tuned = _part(model, "tune_mm_mlp_adapter", parts) if process.tune_mm_mlp_adapter else set()
    return frozen - tuned, tuned


def _part(model: nn.Module, key: str, parts: Mapping[str, str]) -> set[str]:
    part = FLAGGED_PARTS[key]
    if part not in parts:
        raise ValueError(nothing_found(part, parts, (), key))
    return parameters_in(model, select(model, part, parts, key))


def freeze(model: nn.Module, frozen: set[str], tuned: set[str]) -> None:
    """Applies both sets; a tied weight is frozen under each of its names."""
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in frozen:
            parameter.requires_grad = False
    for name, parameter in model.named_parameters():
        if name in tuned:
            parameter.requires_grad = True


def refuse_all_frozen(model: nn.Module) -> None:
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("every weight is frozen, nothing is left to train; freeze fewer parts, or set `lora_enable`")
