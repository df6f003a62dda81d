"""One optimizer for weight matrices and AdamW for everything else, seen by the trainer as a single optimizer."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

HEAD_PARTS = ("head", "lm_head")


class PairedOptimizer(torch.optim.Optimizer):
    """Two optimizers over disjoint groups; `param_groups` contains their own dicts, so a schedule reaches both.

    Args:
        matrices: Trains the weight matrices; its groups come first.
        others: Trains the rest; None: there is no rest.
    """

    def __init__(self, matrices: torch.optim.Optimizer, others: torch.optim.Optimizer | None):
        self.members = (matrices,) if others is None else (matrices, others)
        # Adding a group keeps the dict itself: what a schedule writes into ours is what the members read.
        groups = [group for member in self.members for group in member.param_groups]
        super().__init__(groups, {"lr": matrices.defaults["lr"]})
        self._join()

    def _join(self) -> None:
        """Share one state dict and one list of groups; the parameters are disjoint."""
        self.state = defaultdict(dict)
        for member in self.members:
            self.state.update(member.state)
        for member in self.members:
            member.state = self.state
        self.param_groups = [group for member in self.members for group in member.param_groups]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for member in self.members:
            member.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        groups, state = state_dict["param_groups"], state_dict["state"]
        if len(groups) != len(self.param_groups):
            raise ValueError(
                f"the saved optimizer has {len(groups)} parameter groups, this one {len(self.param_groups)}"
            )
        first = 0
        for member in self.members:
            own = groups[first : first + len(member.param_groups)]
            first += len(own)
            saved = {index: state[index] for group in own for index in group["params"] if index in state}
            member.load_state_dict({"state": saved, "param_groups": own})
        self._join()


def matrix_parameters(model: nn.Module, parts: Mapping[str, str], undecayed: Iterable[str]) -> set[int]:
    """Return ids of the trainable weights that are matrices between layers: 2-D, in no embedding, head or norm."""
    heads = [re.compile(parts[name]) for name in HEAD_PARTS if name in parts]
    excluded = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    excluded += [] if output is None else [output]
    excluded_ids = {id(parameter) for module in excluded for parameter in module.parameters()}
    names = set(undecayed)
    return {
        id(parameter)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.ndim == 2 and id(parameter) not in excluded_ids
        if name not in names and not any(head.search(name) for head in heads)
    }


def split_groups(
    groups: Iterable[dict[str, Any]], chosen: set[int]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the groups over the chosen parameters and those over the rest, with their settings; no empty ones."""
    sides: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for group in groups:
        for side, is_chosen in zip(sides, (True, False), strict=True):
            parameters = [parameter for parameter in group["params"] if (id(parameter) in chosen) == is_chosen]
            if parameters:
                side.append(group | {"params": parameters})
    return sides
