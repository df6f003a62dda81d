"""The fields of the installed `transformers.TrainingArguments`, read from its source without importing it.

Importing TrainingArguments costs seconds (it brings torch); its source tells the same names, types, defaults and help
texts in milliseconds, and for whichever version is installed.
"""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union

from loader.errors import ConfigError

# Where the enumerations that annotate those fields are defined.
ENUM_FILES = ("training_args.py", "trainer_utils.py", "debug_utils.py")
REQUIRED = object()


@dataclass(frozen=True)
class TrainerField:
    """One field: its Python type (enumerations as a Literal of their values), default and help text."""

    name: str
    annotation: Any
    default: Any
    help: str


@cache
def trainer_fields() -> dict[str, TrainerField]:
    """Name -> field, in the order of the installed version's source."""
    folder = transformers_folder()
    source = (folder / "training_args.py").read_text(encoding="utf-8")
    fields = {}
    for statement in _class_body(source, "TrainingArguments"):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            name = statement.target.id
            if name.startswith("_") or "ClassVar" in ast.unparse(statement.annotation):
                continue
            default, text = _default_and_help(statement.value)
            fields[name] = TrainerField(name, _annotation(statement.annotation, folder), default, text)
    return fields


def transformers_folder() -> Path:
    """Where the installed transformers lies, found without importing it."""
    found = importlib.util.find_spec("transformers")
    if found is None or not found.submodule_search_locations:
        raise ConfigError("transformers is not installed: run `make install`, or pip install -e .")
    return Path(found.submodule_search_locations[0])


def _class_body(source: str, name: str) -> list[ast.stmt]:
    """The class's field section only: parsing the whole 3,000-line file would cost most of `--check`'s time."""
    start = source.index(f"\nclass {name}") + 1
    end = source.find("\n    def ", start)
    return ast.parse(source[start:end]).body[0].body


def _default_and_help(value: ast.expr | None) -> tuple[Any, str]:
    if value is None:
        return REQUIRED, ""
    if not isinstance(value, ast.Call):
        return _literal(value), ""
    keywords = {keyword.arg: keyword.value for keyword in value.keywords}
    default = _literal(keywords["default"]) if "default" in keywords else _factory(keywords.get("default_factory"))
    metadata = keywords.get("metadata")
    text = ""
    if isinstance(metadata, ast.Dict):
        for key, each in zip(metadata.keys, metadata.values, strict=True):
            if isinstance(key, ast.Constant) and key.value == "help":
                text = _literal(each) or ""
    return default, " ".join(text.split()) if isinstance(text, str) else ""


def _factory(value: ast.expr | None) -> Any:
    return {"list": [], "dict": {}}.get(value.id) if isinstance(value, ast.Name) else None


def _literal(value: ast.expr) -> Any:
    """The value of a constant expression; None where it is computed at run time."""
    try:
        return ast.literal_eval(value)
    except ValueError:
        return None


@cache
def _enums(folder: Path) -> dict[str, tuple[str, ...]]:
    """Enumeration name -> its values, for every string enumeration in ENUM_FILES."""
    found = {}
    for file in ENUM_FILES:
        source = (folder / file).read_text(encoding="utf-8")
        position = source.find("(ExplicitEnum):")
        while position >= 0:
            start = source.rindex("class ", 0, position)
            end = source.find("\n\n\n", position)
            name = source[start + 6 : position]
            body = ast.parse(source[start : end if end > 0 else None]).body[0].body
            found[name] = tuple(
                each.value.value
                for each in body
                if isinstance(each, ast.Assign) and isinstance(each.value, ast.Constant)
            )
            position = source.find("(ExplicitEnum):", position + 1)
    return found


def _annotation(node: ast.expr, folder: Path) -> Any:
    """The annotation as a type pydantic understands; names it cannot know become Any."""
    text = ast.unparse(node)
    names: dict[str, Any] = {"Any": Any, "Literal": Literal, "Union": Union, "Optional": Union}
    enums = _enums(folder)
    for child in ast.walk(node):
        if isinstance(child, ast.Name) and child.id in enums:
            # `SchedulerType | str` means «one of these words»: the bare str would let any word through.
            text = text.replace(f"{child.id} | str", child.id)
            names[child.id] = Literal[enums[child.id]]
        elif isinstance(child, ast.Name) and child.id not in names and child.id not in _known_names():
            names[child.id] = Any
    try:
        return eval(text, {"__builtins__": {}}, {**_BUILTINS, **names})
    except Exception:  # an annotation written in a way this reader does not know: TrainingArguments checks the value
        return Any


_BUILTINS = {"str": str, "int": int, "float": float, "bool": bool, "list": list, "dict": dict, "tuple": tuple}


def _known_names() -> set[str]:
    return set(_BUILTINS) | {"None"}
