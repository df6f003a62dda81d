"""Declare configuration keys: dataclass fields whose metadata is the only place that describes a key.

Every room declares its own keys (flags and process parameters in loader, sections in trainer, components in data,
models and sim) and none of them may import another, so the declaration itself is here, on the ground floor. So is
what a component's module must have.

Metadata of a key:
    help: One sentence for `--help`, `--print_schema` and error lines.
    ge, gt, le, lt: Bounds of a number.
    on_resume: What a changed value means for a resumed run, one of the classes below; TRAJECTORY if absent.
    needs: The switch (another key) without which this key does nothing.
    needs_value: The values that the switch must have; None: any that is true.
    unless: Paths of keys in the same component (`section.key`), each of which leaves this one without effect.
    is_path: A relative path; where it exists, it is stored as an absolute one, so that run.yaml works in any folder.
        With names of files, only a folder that has one of them is such a path: other folders hide no name.
    used_by: Who reads a process parameter: TRAINER (if absent), ADAPTATION or COMPONENT (those that list it).
    path: Of an alias, the key that it sets.
Further metadata of a flag are arguments of argparse's `add_argument`.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

BOUNDS = ("ge", "gt", "le", "lt")
NOT_OF_ARGPARSE = (*BOUNDS, "on_resume", "needs", "needs_value", "unless", "is_path", "used_by", "path")

# Classes of `on_resume`.
HARMLESS = "harmless"  # applied: training takes the same course
EVALUATION = "evaluation"  # harmless unless the learning rate or the end of the run depends on an evaluation
EVALUATION_TIME = "evaluation time"  # the same, for keys that decide when an evaluation happens
LOGGING = "logging"  # harmless unless early stopping monitors a training metric, which it reads from the log
TRAJECTORY = "trajectory"  # refused, unless `resume_changed: allow`; then applied and recorded
IMPOSSIBLE = "impossible"  # refused: the state in the checkpoint would not fit or would mean something else
OWN_RULE = "own rule"  # length, batch and rates: see loader/resume/compatibility.py

# Values of `used_by`.
TRAINER = "trainer"  # the trainer or the loader, for every model and data set
ADAPTATION = "adaptation"  # models.adapt, for every model
COMPONENT = "component"  # only components that list the key in their PROCESS_KEYS


def key(default: Any, help: str, **metadata: Any) -> Any:
    """Return a dataclass field with its help text and metadata (see the module's docstring).

    Args:
        default: The default; a list or dict is copied for every instance.
        help: One sentence that says what the key does, with its unit.
    """
    described = Metadata(metadata, help=help)
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=default.copy, metadata=described)
    return dataclasses.field(default=default, metadata=described)


class Metadata(dict):
    """All metadata of a key; `keys()` and `copy()` have only what `add_argument` takes.

    transformers' HfArgumentParser passes `dict(field.metadata)`, or `field.metadata.copy()`, to argparse.
    """

    def keys(self) -> list[str]:
        return [name for name in self if name not in NOT_OF_ARGPARSE]

    def copy(self) -> dict[str, Any]:
        return {name: self[name] for name in self.keys()}


class RemembersGiven:
    """Base class of flags: remembers which fields were passed or assigned; one that was given its default counts too.

    A caller that passes all fields, as HfArgumentParser and dataclasses.replace do, gives those that are not at their
    defaults.
    """

    given: frozenset[str]

    def __new__(cls, *args: Any, **kwargs: Any):
        self, fields = super().__new__(cls), dataclasses.fields(cls)
        values = dict(zip((field.name for field in fields), args, strict=False)) | kwargs
        if len(values) == len(fields):
            values = {field.name: None for field in fields if values[field.name] != default_of(field)}
        object.__setattr__(self, "given", frozenset(values))
        object.__setattr__(self, "_built", False)
        return self

    def __post_init__(self) -> None:
        object.__setattr__(self, "_built", True)

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        if self._built:
            object.__setattr__(self, "given", self.given | {name})


def default_of(field: dataclasses.Field) -> Any:
    """Return a field's default; dataclasses.MISSING if it has none."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


# ---- a component's module ----


def lazy(module: str, **places: str) -> Callable[[str], Any]:
    """Return a module's `__getattr__`, which imports attributes when they are first asked for.

    Checking a configuration then needs none of what they import.

    Args:
        module: Its name, for errors.
        places: Attribute -> the module that defines it.
    """

    def get(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return getattr(importlib.import_module(places[name]), name)

    return get


# section -> function -> names of its arguments; None: it is only looked up
REQUIRED: dict[str, dict[str, tuple[str, ...] | None]] = {
    "dataset": {"build": ("config", "run")},
    "model": {"build": ("config", "process"), "load": ("folder",)},
    "loss": {"build": ("config",)},
    "env": {"make": None},
}
OPTIONAL: dict[str, dict[str, tuple[str, ...]]] = {"dataset": {"check": ("config", "run"), "metric_names": ()}}


def contract_problems(section: str, module: ModuleType) -> list[str]:
    """One line for each function that a component lacks or that cannot be called as Keel calls it."""
    lines = []
    for name, arguments in {**REQUIRED[section], **OPTIONAL.get(section, {})}.items():
        call = f"{name}({', '.join(arguments or ('…',))})"
        function = getattr(module, name, None)
        if function is None:
            if name in REQUIRED[section]:
                lines.append(f"module `{module.__name__}` has no `{call}`; docs/extending.md shows one")
        elif not callable(function):
            lines.append(f"`{name}` of module `{module.__name__}` is a {type(function).__name__}, not a function")
        elif arguments is not None and not _accepts(function, len(arguments)):
            declared = f"{name}{inspect.signature(function)}"
            lines.append(f"module `{module.__name__}` defines `{declared}`, which is called as `{call}`")
    return lines


def _accepts(function: object, count: int) -> bool:
    try:
        inspect.signature(function).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:  # a builtin without a signature
        return True
    return True
