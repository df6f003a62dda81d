"""Attributes of a module that are imported when they are first asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def lazy(module: str, **places: str) -> Callable[[str], Any]:
    """Return a module's `__getattr__`; checking a configuration then needs none of what these attributes import.

    Args:
        module: Its name, for errors.
        places: Attribute -> the module that defines it.
    """

    def get(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return getattr(importlib.import_module(places[name]), name)

    return get
