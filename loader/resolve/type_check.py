"""Check a tree against the declared types and bounds; unknown keys are problems with their place."""

from __future__ import annotations

import dataclasses
import json
import math
import operator
import os
import types
import typing
from functools import cache
from typing import Any, Literal

from loader.errors import Problems, quoted
from loader.schema.installed import REQUIRED
from loader.schema.keys import Key, keys_of
from loader.sources.config_tree import Node, node_of
from storage.suggestions import did_you_mean

UNION_TYPES = (typing.Union, types.UnionType)
FILES = ("accelerator_config", "fsdp_config", "deepspeed")  # mappings that may be the path of a JSON file
SECRETS = ("hub_token",)  # never shown
BOUND_WORDS = {"ge": "at least", "gt": "greater than", "le": "at most", "lt": "less than"}  # comparisons of `operator`


def members(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the type itself."""
    if typing.get_origin(annotation) in UNION_TYPES:
        return tuple(member for argument in typing.get_args(annotation) for member in members(argument))
    return (annotation,)


def check_value(path: str, node: Node, key: Key, problems: Problems) -> Any:
    """Return a node's value as the key's type; if it is invalid, add a problem and return None."""
    nested = [member for member in members(key.annotation) if dataclasses.is_dataclass(member)]
    if nested and node.is_mapping:
        return check_dataclass(path, node, nested[0], problems)
    plain = _text_restored(node, key.annotation)
    value, fault = _coerce(plain, key.annotation)
    if fault is None:
        fault = out_of_bounds(value, key.bounds)
    if fault is None:
        value = absolute(value, key.is_path) if key.is_path else value
        _write_back(node, value)
        return value
    if path in SECRETS:
        problems.add(f"`{path}`{node.origin.place} must be {fault}")
        return None
    shown = node.text if node.text is not None and not node.is_mapping else repr(plain)
    hint = ""
    words = [
        word for kind in members(key.annotation) if typing.get_origin(kind) is Literal for word in typing.get_args(kind)
    ]
    if isinstance(plain, str) and plain not in map(str, words):
        hint = did_you_mean(plain, [str(word) for word in words])
    problems.add(f"`{path}: {_short(shown)}`{node.origin.place} must be {fault}{hint}")
    return None


def absolute(value: Any, is_path: bool | tuple[str, ...] = True) -> Any:
    """Return a path that exists, or each of a list, as an absolute one; a name that is no path stays as it is.

    Args:
        is_path: See `storage/config_keys.py`.
    """
    if isinstance(value, list):
        return [absolute(entry, is_path) for entry in value]
    if not isinstance(value, str) or not value or value.startswith("~") or os.path.isabs(value):
        return value
    needed = [value] if is_path is True else [os.path.join(value, name) for name in is_path]
    return os.path.abspath(value) if any(map(os.path.exists, needed)) else value


def mapping_of_text(path: str, node: Node, key: Key, problems: Problems) -> Node:
    """Parse JSON text into a mapping if the key of transformers takes both; other nodes are returned unchanged."""
    takes = {typing.get_origin(member) or member for member in members(key.annotation)}
    if not ({dict, str} <= takes and isinstance(node.value, str)) or (path in FILES and "{" not in node.value):
        return node
    try:
        mapping = json.loads(node.value)
    except (ValueError, RecursionError):
        mapping = None
    if isinstance(mapping, dict):
        return node_of(mapping, node.origin)
    problems.add(f"`{path}: {_short(node.value)}`{node.origin.place} must be a mapping, as in {{name: value}}")
    return Node(None, node.origin)


def check_dataclass(path: str, node: Node, kind: type, problems: Problems, free: bool = False) -> Any:
    """Build a dataclass from a mapping. `free` allows further keys, which become the dict attribute `extra`.

    Returns None after a problem.
    """
    keys, before, values, extra = keys_of(kind), len(problems.lines), {}, {}
    for name, child in node.value.items():
        if name in keys:
            values[name] = check_value(f"{path}.{name}", child, keys[name], problems)
        elif free:
            extra[name] = child.plain()
        else:
            remedy = did_you_mean(name, keys, f"; known: {quoted(keys)}")
            problems.add(f"unknown key `{path}.{name}`{child.origin.place}{remedy}")
    for name, key in keys.items():
        if key.default is REQUIRED and name not in values:
            problems.add(
                f"`{path}.{name}` is missing ({path}{node.origin.place}): {key.help or describe(key.annotation)}"
            )
    if len(problems.lines) > before:
        return None
    try:
        built = kind(**values)
    except (ValueError, TypeError) as error:
        problems.add(f"`{path}`{node.origin.place}: {error}")
        return None
    if free:
        built.extra = extra
    return built


def describe(annotation: Any) -> str:
    """Describe a type in words: «a whole number», «one of `a`, `b`»."""
    words = []
    for member in members(annotation):
        origin, arguments = typing.get_origin(member), typing.get_args(member)
        if origin is Literal:
            words.append("one of " + ", ".join(str(word) for word in arguments))
        elif origin is list or member is list:
            inner = f" of {describe(arguments[0])}" if arguments else ""
            words.append(f"a list{inner}")
        elif origin is dict or member is dict:
            words.append("a mapping")
        elif dataclasses.is_dataclass(member):
            words.append("a mapping with the keys " + ", ".join(keys_of(member)))
        else:
            names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
            words.append(names.get(member, getattr(member, "__name__", str(member))))
    return " or ".join(words)


def _text_restored(node: Node, annotation: Any) -> Any:
    """Return the plain value; if text is expected, an unquoted `no`, `on` or `123` becomes text again."""
    kinds = members(annotation)
    if isinstance(node.value, list):
        element = next(
            (typing.get_args(kind)[0] for kind in kinds if typing.get_args(kind) and typing.get_origin(kind) is list),
            Any,
        )
        return [_text_restored(child, element) for child in node.value]
    if node.is_mapping:
        values = next((typing.get_args(kind)[1] for kind in kinds if typing.get_origin(kind) is dict), Any)
        return {name: _text_restored(child, values) for name, child in node.value.items()}
    literals = [word for kind in kinds if typing.get_origin(kind) is Literal for word in typing.get_args(kind)]
    wants_word = str in kinds or any(isinstance(word, str) for word in literals)
    if node.text is not None and node.value is not None and not isinstance(node.value, str) and wants_word:
        takes_value = type(node.value) in kinds or (isinstance(node.value, int) and float in kinds)
        if not takes_value:
            return node.text
    return node.value


def _write_back(node: Node, value: Any) -> None:
    """Store the typed value in the tree, so that the printed and saved configuration is the one in use."""
    if isinstance(node.value, list) and isinstance(value, list) and len(node.value) == len(value):
        for child, element in zip(node.value, value, strict=True):
            _write_back(child, element)
    elif not isinstance(node.value, (list, dict)):
        node.value, node.text = value, None


def _coerce(value: Any, annotation: Any) -> tuple[Any, str | None]:
    """Return (value as the annotated type, None), or (None, what it must be)."""
    if annotation is Any:
        return value, None
    kinds = members(annotation)
    # pydantic reads true as 1 and "off" as a bool; here a switch is not a number.
    if isinstance(value, bool) and bool not in kinds and not _has_literal(kinds, value) and Any not in kinds:
        return None, describe(annotation)
    if isinstance(value, float) and not math.isfinite(value) and float in kinds:
        return None, f"a finite {describe(annotation).removeprefix('a ')}"
    if (
        isinstance(value, (int, float))
        and bool in kinds
        and not isinstance(value, bool)
        and not {int, float} & set(kinds)
    ):
        return None, describe(annotation)
    try:
        typed = _adapter(annotation).validate_python(value)
        if isinstance(typed, float) and not math.isfinite(typed):  # written as text: "inf", "1e999"
            return None, f"a finite {describe(annotation).removeprefix('a ')}"
        return typed, None
    except Exception:  # pydantic's message describes its internals; ours names the type
        return None, describe(annotation)


def _has_literal(kinds: tuple[Any, ...], value: Any) -> bool:
    return any(typing.get_origin(kind) is Literal and value in typing.get_args(kind) for kind in kinds)


@cache
def _adapter(annotation: Any) -> Any:
    from pydantic import TypeAdapter  # 0.08 s: only when there is a value to check

    return TypeAdapter(annotation)


def out_of_bounds(value: Any, bounds: dict[str, float]) -> str | None:
    """Return what a number must be (`at least 1`) if it is out of bounds, else None."""
    if not bounds or not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    if all(getattr(operator, name)(value, bound) for name, bound in bounds.items()):
        return None
    return " and ".join(f"{BOUND_WORDS[name]} {bound}" for name, bound in bounds.items())


def _short(value: Any, most: int = 80) -> str:
    text = str(value)
    return text if len(text) <= most else text[: most - 1] + "…"
