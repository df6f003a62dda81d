"""Callbacks that a training file names by their import path."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import TrainerCallback


def named_callbacks(entries: Sequence[str | Mapping[str, Any]] | None) -> list[TrainerCallback]:
    """The callbacks of the section `callbacks`, in its order.

    Args:
        entries: Each an import path, `my_lab.callbacks.Foo`, or a mapping with the path as `name` and the constructor's
            arguments: `{name: my_lab.callbacks.Foo, every: 3}`.

    Raises:
        ValueError: one line for the first that cannot be had: no such module, one whose own import fails, no such
            class, not a TrainerCallback, an argument it does not take or misses, or its constructor refuses.
    """
    return [_callback(entry, f"callbacks[{index}]") for index, entry in enumerate(entries or ())]


def _callback(entry: str | Mapping[str, Any], place: str) -> TrainerCallback:
    arguments = {"name": entry} if isinstance(entry, str) else dict(entry)
    path = arguments.pop("name", None)
    if not isinstance(path, str) or "." not in path.strip("."):
        raise ValueError(f"`{place}` must be an import path like my_lab.callbacks.Foo, or a mapping with it as `name`")
    module_name, _, class_name = path.rpartition(".")
    kind = _member(_module(module_name, place), class_name, place)
    if not (isinstance(kind, type) and issubclass(kind, TrainerCallback)):
        raise ValueError(f"`{place}`: {path} is not a TrainerCallback of transformers; derive it from that class")
    _check_arguments(kind, arguments, place, path)
    try:
        return kind(**arguments)
    except Exception as error:
        raise ValueError(f"`{place}`: {path} cannot be built: {_one_line(error)}") from error


def _module(name: str, place: str) -> Any:
    """Import the module; a missing module and a missing import inside it are different errors."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise ValueError(f"`{place}`: importing {name} failed: {_one_line(error)}") from error
        raise ValueError(f"`{place}`: there is no module `{error.name}`{_near(error.name)}") from error
    except Exception as error:
        raise ValueError(f"`{place}`: importing {name} failed: {_one_line(error)}") from error


def _near(missing: str) -> str:
    """The remedy for a module that is not there: one of a similar name where it was looked for."""
    parent, _, last = missing.rpartition(".")
    where = getattr(importlib.import_module(parent), "__path__", []) if parent else None
    close = difflib.get_close_matches(last, [iter_module.name for iter_module in pkgutil.iter_modules(where)], n=1)
    return f"; did you mean `{parent}{'.' * bool(parent)}{close[0]}`?" if close else "; is its folder on PYTHONPATH?"


def _member(module: Any, name: str, place: str) -> Any:
    if hasattr(module, name):
        return getattr(module, name)
    kinds = {each: kind for each, kind in vars(module).items() if isinstance(kind, type)}
    callbacks = [each for each, kind in kinds.items() if issubclass(kind, TrainerCallback) and kind != TrainerCallback]
    close = difflib.get_close_matches(name, callbacks or list(vars(module)), n=1)
    remedy = f"did you mean `{close[0]}`?" if close else f"its callbacks: {', '.join(callbacks) or 'none'}"
    raise ValueError(f"`{place}`: {module.__name__} has no `{name}`; {remedy}")


def _check_arguments(kind: type, arguments: Mapping[str, Any], place: str, path: str) -> None:
    takes = inspect.signature(kind).parameters
    named = [each for each, how in takes.items() if how.kind in (how.POSITIONAL_OR_KEYWORD, how.KEYWORD_ONLY)]
    takes_any = any(how.kind is how.VAR_KEYWORD for how in takes.values())
    for argument in arguments:
        if argument not in named and not takes_any:
            close = difflib.get_close_matches(str(argument), named, n=1)
            remedy = f"did you mean `{close[0]}`?" if close else f"it takes {', '.join(named) or 'no arguments'}"
            raise ValueError(f"`{place}`: {path} takes no argument `{argument}`; {remedy}")
    missing = [each for each in named if takes[each].default is inspect.Parameter.empty and each not in arguments]
    if missing:
        raise ValueError(f"`{place}`: {path} needs the argument `{missing[0]}`; write it beside `name`")


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
