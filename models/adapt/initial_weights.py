"""Where a model's first weights come from: random, one of our checkpoints, or a pretrained model by path."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from models.adapt.checks import check, unused_path

SHOWN = 3  # names of weights that a line lists


@dataclass
class InitialModel:
    """A model with its first weights.

    Attributes:
        place: folder or hub id from which exactly these weights load again; None: nowhere.
        new: names of the parameters that no pretrained weight filled; None: all are random.
        lines: what was loaded.
    """

    model: nn.Module
    place: str | None = None
    new: set[str] | None = None
    lines: list[str] = field(default_factory=list)


def first_weights(module: ModuleType, config: Any, process: Any) -> InitialModel:
    """The model that `module` builds, with the weights that `model_name_or_path` names.

    Raises:
        ValueError: the folder is missing, is of another model, or its weights do not fit.
    """
    keys = getattr(module, "PROCESS_KEYS", frozenset())
    problems = check(getattr(module, "PARTS", None), process, keys)
    if problems:
        raise ValueError("; ".join(problems))
    path = process.model_name_or_path
    if not (process.is_pretrained or process.load_pretrain):
        model = module.build(config, process)
        assert not path or "model_name_or_path" in keys, unused_path(path)
        lines = [*getattr(model, "notes", [])]
        return InitialModel(model, getattr(model, "loaded_from", None), getattr(model, "new_weights", None), lines)
    from models.adapt.adapter_io import plain_model, refuse_other_module

    folder = Path(os.path.expanduser(path))
    refuse_other_module(folder, module)
    model = module.build(config, process)
    lines = [*getattr(model, "notes", [])]
    weights = plain_model(folder, module, process.trust_remote_code).state_dict()
    if process.is_pretrained:
        return InitialModel(model, new=set(), lines=[*lines, _take_all(model, weights, folder)])
    new, line = _take_fitting(model, weights, folder)
    return InitialModel(model, new=new, lines=[*lines, line])


def _take_all(model: nn.Module, weights: dict[str, torch.Tensor], folder: Path) -> str:
    """Load every weight of an equal model; returns a line for the log."""
    own = model.state_dict()
    wrong = [name for name in own if name not in weights or weights[name].shape != own[name].shape]
    wrong += [name for name in weights if name not in own]
    if wrong:
        name = wrong[0]
        here, there = _size(own.get(name)), _size(weights.get(name))
        raise ValueError(
            f"`is_pretrained`: {len(wrong)} weights of {folder} differ from this model's, first {name}: {there} there, "
            f"{here} here; use the settings it was trained with, or `load_pretrain` for the weights that fit"
        )
    model.load_state_dict(weights)
    return f"is_pretrained: all {len(weights)} weights of {folder}"


def _take_fitting(model: nn.Module, weights: dict[str, torch.Tensor], folder: Path) -> tuple[set[str], str]:
    """Weights of equal name and shape; returns the parameters that stay new, and the line that counts them."""
    own = model.state_dict()
    fitting = {name: value for name, value in weights.items() if name in own and own[name].shape == value.shape}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    if not parameters & fitting.keys():
        raise ValueError(
            f"`load_pretrain`: no weight of {folder} fits this model by name and shape; choose an architecture that "
            "shares some with it"
        )
    model.load_state_dict(fitting, strict=False)
    left = [name for name in own if name not in fitting]
    line = f"load_pretrain: {len(fitting)} of {len(own)} weights from {folder}"
    if left:
        more = " …" if len(left) > SHOWN else ""
        line += f"; {len(left)} stay new: {', '.join(left[:SHOWN])}{more}"
    return parameters - fitting.keys(), line


def _size(tensor: torch.Tensor | None) -> str:
    return "nothing" if tensor is None else f"{'×'.join(map(str, tensor.shape)) or 'a number'}"
