"""Select and freeze the parameters that do not train."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from models.adapt.checks import FLAGGED_PARTS, words_of
from models.adapt.submodules import parameters_in, select


def frozen_and_tuned(model: nn.Module, process: Any, parts: Mapping[str, str]) -> tuple[set[str], set[str]]:
    """Return the names of parameters that stay frozen, and of those that train whatever else is frozen.

    Raises:
        ValueError: a pattern matches nothing, or the model has no such part.
    """

    def flagged(key: str) -> set[str]:
        return parameters_in(model, select(model, FLAGGED_PARTS[key], parts, key)) if getattr(process, key) else set()

    frozen = flagged("freeze_vision_tower") | flagged("freeze_backbone")
    for word in words_of(process.freeze):
        frozen |= parameters_in(model, select(model, word, parts, "freeze"))
    tuned = flagged("tune_mm_mlp_adapter")
    # By the network itself, because nothing depends on them.
    fixed = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return frozen - tuned | fixed, tuned - fixed


def freeze(model: nn.Module, frozen: set[str], tuned: set[str]) -> None:
    """Freeze and unfreeze parameters; a tied one is frozen under each of its names.

    Raises:
        ValueError: nothing is left to train.
    """
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in frozen:
            parameter.requires_grad = False
    for name, parameter in model.named_parameters():
        if name in tuned:
            parameter.requires_grad = True
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("every weight is frozen, nothing is left to train; freeze fewer parts, or set `lora_enable`")
