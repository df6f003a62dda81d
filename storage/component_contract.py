"""The functions that a component must have, and how each is called: checked before anything is built."""

from __future__ import annotations

import inspect
from types import ModuleType

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
