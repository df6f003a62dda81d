"""Hyperparameters that have changed since the checkpoint; optimizer state of an earlier run (`load_optimizer`)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer.distributed.shards import size_text
from trainer.optimization.optimizers import build_optimizer
from trainer.serialization import state_dict_io


@dataclass(frozen=True)
class OptimizerPlan:
    """An optimizer as a run describes it; see `optimizers.build_optimizer`.

    Attributes:
        arguments: Fields of TrainingArguments, in place of the run's own.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    specs: Sequence[Any] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    layer_decay: float = 1.0

    def build(self, model: nn.Module, args: Any, parts: Mapping[str, str]) -> torch.optim.Optimizer:
        args = copy.copy(args)
        for name, value in self.arguments.items():
            setattr(args, name, value)
        groups = {"specs": self.specs, "parts": parts, "layer_decay": self.layer_decay}
        return build_optimizer(model, self.name, self.options, args=args, **groups)


def changed_options(before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each group of an optimizer the options that have changed: `lr`, `weight_decay`, `betas` … -> the new value.

    Args:
        before, now: The groups of two optimizers as they were built, over the same model: what an optimizer itself
            writes into its groups later (a step, an estimate) is not compared.

    Raises:
        ValueError: the groups hold other parameters, so that the stored state would not fit.
    """
    members = [[[id(parameter) for parameter in group["params"]] for group in groups] for groups in (before, now)]
    if members[0] != members[1]:
        raise ValueError("the optimizer's groups hold other parameters than those of the checkpoint; set them back")
    return [
        {key: value for key, value in group.items() if key != "params" and not _same(value, earlier.get(key))}
        for group, earlier in zip(now, before, strict=True)
    ]


def apply_changes(optimizer: torch.optim.Optimizer, schedule: Any, changes: Sequence[Mapping[str, Any]]) -> None:
    """Write changed options into the groups, and changed rates into the schedule, which the groups follow."""
    for group, changed in zip(optimizer.param_groups, changes, strict=True):
        group.update({key: value for key, value in changed.items() if key != "lr"})
    bases = [changed.get("lr", base) for base, changed in zip(schedule.base_lrs, changes, strict=True)]
    schedule.rebase([float(base) for base in bases])


def _same(value: Any, earlier: Any) -> bool:
    if isinstance(value, torch.Tensor) and isinstance(earlier, torch.Tensor):
        return torch.equal(value, earlier)
    return type(value) is type(earlier) and value == earlier


def load_earlier_state(optimizer: Any, folder: Path) -> None:
    """Load the optimizer's state (moments, step counts) from an earlier run's checkpoint, but not its learning rates.

    Raises:
        ValueError: the state is missing or corrupted, or belongs to another optimizer or model.
    """
    options = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(state_dict_io.read(folder, "optimizer"))
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"`load_optimizer`: {folder} cannot be used: {' '.join(str(error).split())}") from error
    for group, own in zip(optimizer.param_groups, options, strict=True):
        for name in group.keys() - own.keys() - {"params"}:
            del group[name]
        group.update(own)
        for parameter in group["params"]:
            for name, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor) and value.dim() and value.shape != parameter.shape:
                    raise ValueError(
                        f"`load_optimizer`: {folder} is of another model: its `{name}` is {size_text(value.shape)} for "
                        f"a weight of {size_text(parameter.shape)}"
                    )
