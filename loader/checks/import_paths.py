"""Check an import path (`my_lab.callbacks.Mine`) from the module's source, without importing anything."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterable, Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from storage.suggestions import did_you_mean


def import_problem(path: str) -> str | None:
    """What is wrong with the path of a class, or None; also where only an import could tell."""
    module, _, name = path.rpartition(".")
    package, *rest = module.split(".")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    found = package
    for part in rest if spec is not None else ():
        if spec.submodule_search_locations is None:
            return f"`{found}` is a module, not a package with `{part}` for `{path}`"
        found = f"{found}.{part}"
        spec = PathFinder.find_spec(found, spec.submodule_search_locations)
        if spec is None:
            break
    if spec is None:
        return f"no module `{found}` for `{path}`"
    names = _names(spec)
    return None if names is None or name in names else f"module `{module}` has no `{name}`{did_you_mean(name, names)}"


def _names(spec: ModuleSpec) -> set[str] | None:
    """The names that a module defines at its top level; None if its source does not show them all."""
    if spec.origin is None or not spec.origin.endswith(".py"):
        return None
    try:
        tree = ast.parse(Path(spec.origin).read_bytes())
    except (OSError, SyntaxError, ValueError):  # its import reports why
        return None
    names = set(_defined(tree.body))
    return None if names & {"*", "__getattr__"} else names


def _defined(statements: Iterable[ast.stmt]) -> Iterator[str]:
    for statement in statements:
        if isinstance(statement, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield statement.name
        elif isinstance(statement, (ast.Import, ast.ImportFrom)):
            yield from (alias.asname or alias.name.partition(".")[0] for alias in statement.names)
        elif isinstance(statement, (ast.Assign, ast.AnnAssign)):
            yield from (node.id for node in ast.walk(statement) if isinstance(node, ast.Name))
        else:  # blocks of `if`, `try`, `with`
            blocks = (getattr(statement, field, ()) for field in ("body", "orelse", "finalbody"))
            yield from (name for block in blocks for name in _defined(block))
            yield from (name for handler in getattr(statement, "handlers", ()) for name in _defined(handler.body))
