"""Callbacks that a training file names by their import path."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import TrainerCallback

from storage.suggestions import did_you_mean


def named_callbacks(entries: Sequence[str | Mapping[str, Any]] | None) -> list[TrainerCallback]:
    """Build the callbacks of the section `callbacks`, in its order.

    Args:
        entries: Each an import path, `my_lab.callbacks.Foo`, or a mapping with the path as `name` and the constructor's
            arguments: `{name: my_lab.callbacks.Foo, every: 3}`.

    Raises:
        ValueError: one line for the first that cannot be built: its module cannot be imported or has no such class,
            the class is not a TrainerCallback, or its constructor fails.
    """
    return [_callback(entry, f"callbacks[{index}]") for index, entry in enumerate(entries or ())]


def is_users(callback: TrainerCallback) -> bool:
    """Whether a callback is not one of Keel's own."""
    return not type(callback).__module__.startswith("trainer.")


def observes(callback: TrainerCallback, event: str) -> bool:
    """Whether a user's callback, neither Keel's nor of transformers, listens to an event."""
    module = type(callback).__module__
    return (
        is_users(callback)
        and not module.startswith("transformers.")
        and (event in vars(callback) or getattr(type(callback), event) is not getattr(TrainerCallback, event))
    )


def _callback(entry: str | Mapping[str, Any], place: str) -> TrainerCallback:
    arguments = {"name": entry} if isinstance(entry, str) else dict(entry)
    path = arguments.pop("name", None)
    if not isinstance(path, str) or "." not in path.strip("."):
        raise ValueError(f"`{place}` must be an import path like my_lab.callbacks.Foo, or a mapping with it as `name`")
    module_name, _, class_name = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        hint = ""
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            hint = "; is its folder on PYTHONPATH?"
        raise ValueError(f"`{place}`: importing {module_name} failed: {_one_line(error)}{hint}") from error
    kind = getattr(module, class_name, None)
    if not (isinstance(kind, type) and issubclass(kind, TrainerCallback)):
        kinds = {name: value for name, value in vars(module).items() if isinstance(value, type)}
        names = [name for name, value in kinds.items() if issubclass(value, TrainerCallback) and name != class_name]
        hint = did_you_mean(class_name, names, "; derive it from that class")
        raise ValueError(f"`{place}`: {path} is not a TrainerCallback of transformers{hint}")
    try:
        return kind(**arguments)
    except Exception as error:
        raise ValueError(f"`{place}`: {path} cannot be built: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
