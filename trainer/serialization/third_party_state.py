"""Optimizers whose state holds objects, saved as plain values: checkpoints hold no pickles."""

from __future__ import annotations

import enum
import importlib
from collections import deque
from typing import Any

import torch

PACKAGE = "pytorch_optimizer"  # only classes of this package are ever rebuilt from a checkpoint
OBJECT, ATTRIBUTES, QUEUE, LONGEST = "__object__", "__attributes__", "__queue__", "__longest__"


def saved_plainly(kind: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """`kind` with a state_dict of tensors, numbers, strings, lists and dicts only, and a load_state_dict for it."""

    def state_dict(self: torch.optim.Optimizer) -> dict[str, Any]:
        return to_plain(kind.state_dict(self))

    def load_state_dict(self: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        kind.load_state_dict(self, from_plain(state))

    return type(kind.__name__, (kind,), {"state_dict": state_dict, "load_state_dict": load_state_dict})


def to_plain(value: Any) -> Any:
    """Queues, enumerations and the package's own objects as dicts; everything else as it is."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, deque):
        return {QUEUE: [to_plain(each) for each in value], LONGEST: value.maxlen}
    if isinstance(value, dict):
        return {key: to_plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(to_plain(each) for each in value)
    if type(value).__module__.startswith(f"{PACKAGE}."):
        name = f"{type(value).__module__}:{type(value).__qualname__}"
        return {OBJECT: name, ATTRIBUTES: to_plain(vars(value))}
    return value


def from_plain(value: Any) -> Any:
    """The inverse of `to_plain`.

    Raises:
        ValueError: the state asks for a class that is not the package's: somebody else wrote this file.
    """
    if isinstance(value, (list, tuple)):
        return type(value)(from_plain(each) for each in value)
    if not isinstance(value, dict):
        return value
    if QUEUE in value:
        return deque((from_plain(each) for each in value[QUEUE]), maxlen=value[LONGEST])
    if OBJECT not in value:
        return {key: from_plain(each) for key, each in value.items()}
    module, _, name = value[OBJECT].partition(":")
    if not module.startswith(f"{PACKAGE}."):
        raise ValueError(f"optimizer state names the class `{value[OBJECT]}`, which is not {PACKAGE}'s; do not load it")
    kind = getattr(importlib.import_module(module), name)
    rebuilt = kind.__new__(kind)
    vars(rebuilt).update(from_plain(value[ATTRIBUTES]))
    return rebuilt
