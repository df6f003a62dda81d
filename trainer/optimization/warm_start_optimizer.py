"""A fresh run whose optimizer starts with the moments of an earlier one (`load_optimizer`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from trainer.serialization.state_dict_io import read


def take_state(optimizer: Any, folder: Path) -> None:
    """Fills the optimizer's state (moments, step counts) from that in an earlier run's checkpoint; rates stay its own.

    Raises:
        ValueError: the state is missing or damaged, or of another optimizer or model.
    """
    own = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(read(folder, "optimizer"))
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"`load_optimizer`: {folder} cannot be used: {' '.join(str(error).split())}") from error
    for group, settings in zip(optimizer.param_groups, own, strict=True):
        group.update(settings)
        for parameter in group["params"]:
            for name, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor) and value.dim() and value.shape != parameter.shape:
                    raise ValueError(
                        f"`load_optimizer`: {folder} is of another model: its `{name}` is {_size(value)} for a weight "
                        f"of {_size(parameter)}"
                    )


def _size(tensor: torch.Tensor) -> str:
    return "×".join(map(str, tensor.shape))
