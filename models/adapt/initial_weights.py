"""Build a model with its first weights: random, from one of Keel's checkpoints, or pretrained by path."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from models.adapt.saved_model import plain_model, refuse_other_module
from models.pretrained import refuse_other_labels

SHOWN = 3  # names of weights that a line lists


def first_weights(module: ModuleType, config: Any, process: Any) -> nn.Module:
    """Build the model of `module`, with the weights that `model_name_or_path` names.

    A component that loads pretrained weights itself sets the first two of these attributes of its model:

        loaded_from: folder or hub id from which exactly these weights load again; None or absent: nowhere.
        new_weights: names of the parameters that no pretrained weight filled; None or absent: all are random.
        notes: lines for the log.

    Raises:
        ValueError: the folder is missing, is of another model, or its weights do not fit.
    """
    if not (process.is_pretrained or process.load_pretrain):
        return module.build(config, process)
    folder = Path(os.path.expanduser(process.model_name_or_path))
    refuse_other_module(folder, module)
    model = module.build(config, process)
    stored = plain_model(folder, module, process.trust_remote_code)
    if process.is_pretrained:
        refuse_other_labels(stored.config, getattr(config, "labels", None), f"`is_pretrained`: {folder}")
    weights = stored.state_dict()
    model.new_weights, line = (_load_all if process.is_pretrained else _load_fitting)(model, weights, folder)
    model.notes = [*getattr(model, "notes", ()), line]
    return model


def _load_all(model: nn.Module, weights: dict[str, torch.Tensor], folder: Path) -> tuple[set[str], str]:
    """Load every weight of an equal architecture; return the new parameters (none) and a line for the log."""
    shapes = {name: _shape(tensor) for name, tensor in model.state_dict().items()}
    stored = {name: _shape(tensor) for name, tensor in weights.items()}
    wrong = [name for name in [*shapes, *stored] if shapes.get(name) != stored.get(name)]
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"`is_pretrained`: {len(set(wrong))} weights of {folder} differ from this model's, first {name}: "
            f"{stored.get(name, 'nothing')} there, {shapes.get(name, 'nothing')} here; use the settings it was trained "
            "with, or `load_pretrain` for the weights that fit"
        )
    model.load_state_dict(weights)
    return set(), f"is_pretrained: all {len(weights)} weights of {folder}"


def _load_fitting(model: nn.Module, weights: dict[str, torch.Tensor], folder: Path) -> tuple[set[str], str]:
    """Load the weights of equal name and shape; return the parameters that stay new, and a line that counts them."""
    own = model.state_dict()
    fitting = {name: value for name, value in weights.items() if name in own and own[name].shape == value.shape}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    if not parameters & fitting.keys():
        raise ValueError(
            f"`load_pretrain`: no weight of {folder} fits this model by name and shape; choose an architecture that "
            "shares some with it"
        )
    model.load_state_dict(fitting, strict=False)
    new = [name for name in own if name not in fitting]
    line = f"load_pretrain: {len(fitting)} of {len(own)} weights from {folder}"
    if new:
        line += f"; {len(new)} stay new: {', '.join(new[:SHOWN])}{' …' if len(new) > SHOWN else ''}"
    return parameters - fitting.keys(), line


def _shape(tensor: torch.Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a number"
