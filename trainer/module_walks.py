"""Spare the walks over all modules that transformers makes in every step, until something has changed."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)


class ModuleWalks:
    """Replaces `train` and `zero_grad` of a model that trains by ones that walk lists of its modules and parameters.

    Without it: both walk the tree of modules in every step, several percent of the step of a small network. The lists
    are made again when a module or a parameter is added anywhere. `train` sets the modes only where one differs from
    what the last call left, so that a submodule which a callback puts into evaluation mode trains again.

    Args:
        model: The model as it is trained, perhaps wrapped (DDP).
    """

    def __init__(self, model: nn.Module):
        self.model, self.is_active = model, True
        self.mode: bool | None = None  # of the last `train(mode)`
        self.modes: list[bool] = []  # of each module, as that call left them
        self.has_changed = True
        self.handles = [
            register(self._note_change)
            for register in (register_module_module_registration_hook, register_module_parameter_registration_hook)
        ]
        self._list()
        model.train, model.zero_grad = self.train, self.zero_grad

    def _note_change(self, *details: Any) -> None:
        self.has_changed = True

    def _list(self) -> None:
        self.modules = list(self.model.modules())
        self.parameters = list(self.model.parameters())
        self.mode, self.has_changed = None, False

    def train(self, mode: bool = True) -> nn.Module:
        """As `nn.Module.train`."""
        if self.is_active:
            if self.has_changed:
                self._list()
            if mode == self.mode and [module.training for module in self.modules] == self.modes:
                return self.model
        type(self.model).train(self.model, mode)
        if self.is_active:
            self.mode, self.modes = mode, [module.training for module in self.modules]
        return self.model

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As `nn.Module.zero_grad`."""
        if not (self.is_active and set_to_none):
            return type(self.model).zero_grad(self.model, set_to_none)
        for parameter in self.trained_parameters():
            parameter.grad = None

    def trained_parameters(self) -> list[nn.Parameter]:
        """All parameters that have a gradient now."""
        if self.has_changed:
            self._list()
        return [parameter for parameter in self.parameters if parameter.grad is not None]

    def remove(self) -> None:
        """Give the model its own methods back."""
        self.is_active = False
        for handle in self.handles:
            handle.remove()
        for name in ("train", "zero_grad"):
            self.model.__dict__.pop(name, None)

    def __getstate__(self) -> dict[str, Any]:
        """A copy of the model (deepcopy, pickle) gets methods that walk the copy."""
        return {"model": self.model, "is_active": False}
