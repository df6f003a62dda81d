"""Hyperparameters that have changed since the checkpoint; optimizer state of an earlier run (`load_optimizer`)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

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

    def build(self, model: nn.Module, args: Any, parts: Mapping[str, str]) -> torch.optim.Optimizer:
        args = copy.copy(args)
        for name, value in self.arguments.items():
            setattr(args, name, value)
        return build_optimizer(model, self.name, self.options, args=args, specs=self.specs, parts=parts)


def changed_options(
    before: OptimizerPlan, now: OptimizerPlan, model: nn.Module, args: Any, parts: Mapping[str, str]
) -> list[dict[str, Any]]:
    """For each group of the optimizer what is another now: `lr`, `weight_decay`, `betas` … -> the new value.

    Both are built and compared, so that what an optimizer itself writes into its groups (a step, an estimate) stays.

    Raises:
        ValueError: the groups hold other parameters: what is stored would not fit.
    """
    old, new = (each.build(model, args, parts).param_groups for each in (before, now))
    members = [[[id(each) for each in group["params"]] for group in groups] for groups in (old, new)]
    if members[0] != members[1]:
        raise ValueError("the optimizer's groups hold other parameters than those of the checkpoint; set them back")
    return [
        {key: value for key, value in group.items() if key != "params" and not _same(value, earlier.get(key))}
        for group, earlier in zip(new, old, strict=True)
    ]


def apply_changes(optimizer: torch.optim.Optimizer, schedule: Any, changes: Sequence[Mapping[str, Any]]) -> None:
    """Writes changed options into the groups, and changed rates into the schedule, which the groups follow."""
    for group, changed in zip(optimizer.param_groups, changes, strict=True):
        group.update({key: value for key, value in changed.items() if key != "lr"})
    bases = [changed.get("lr", base) for base, changed in zip(schedule.base_lrs, changes, strict=True)]
    schedule.rebase([float(each) for each in bases])


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
        group.update(own)
        for parameter in group["params"]:
            for name, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor) and value.dim() and value.shape != parameter.shape:
                    raise ValueError(
                        f"`load_optimizer`: {folder} is of another model: its `{name}` is {_size(value)} for a weight "
                        f"of {_size(parameter)}"
                    )


def _size(tensor: torch.Tensor) -> str:
    return "×".join(map(str, tensor.shape))
