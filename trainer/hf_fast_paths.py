"""Spares what every step would do again: two walks through all modules, `train()` before each forward and `zero_grad()`
after each update, and accelerate's search for a package.

On a small network they cost several percent of a step. A model is patched for the time of its training only.
"""

from __future__ import annotations

import functools

from torch import nn

METHODS = ("train", "zero_grad")


def spare_walks(model: nn.Module, inner: nn.Module) -> None:
    """Until `restore_walks`: `model.train()` returns at once when the model is training, `zero_grad()` goes through a
    list of the parameters made now.

    Args:
        model: As it is trained, perhaps in a wrapper (DDP).
        inner: The model itself. An evaluation puts it alone into evaluation mode, which its wrapper does not see.
    """
    walk, parameters = type(model).train.__get__(model), list(model.parameters())

    def train(mode: bool = True) -> nn.Module:
        return model if model.training == mode == inner.training else walk(mode)

    def zero_grad(set_to_none: bool = True) -> None:
        for parameter in parameters:
            if set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad = parameter.grad.detach().zero_()

    model.train, model.zero_grad = train, zero_grad


def spare_lookups() -> None:
    """accelerate searches the import path for a package at every backward and every step; the answer stays the same."""
    from accelerate.utils import imports

    lookup = getattr(imports, "_is_package_available", None)
    if lookup is not None and not hasattr(lookup, "cache_info"):
        imports._is_package_available = functools.cache(lookup)


def restore_walks(model: nn.Module) -> None:
    """The model's own methods again; does nothing to a model that was not patched."""
    for name in METHODS:
        model.__dict__.pop(name, None)
