"""Declare configuration keys: dataclass fields whose metadata is the only place that describes a key.

Every room declares its own keys (flags and process parameters in loader, sections in trainer, components in data,
models and sim) and none of them may import another, so the declaration itself is here, on the ground floor. So are
the functions that a component's module must have.

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
Further metadata of a flag are arguments of argparse's `add_argument`.
"""

from __future__ import annotations

import dataclasses
import inspect
from types import ModuleType
from typing import Any

BOUNDS = ("ge", "gt", "le", "lt")

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
    metadata["help"] = help
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


# ---- functions of a component's module ----

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
