"""The JSON schema of a training file, for editors: every key with its type, bounds, default and help text."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

from loader.schema.installed import REQUIRED
from loader.schema.keys import (
    COMPONENTS,
    FREE_SECTIONS,
    LIST_SECTIONS,
    OPTIONAL_SECTIONS,
    REPLACED,
    TASK_KEYS,
    Key,
    component_module,
    keys_of,
    scalar_keys,
    shipped,
)
from loader.sources.key_aliases import yaml_keys

# JSON schema's names for our bounds.
BOUND_NAMES = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
# Short forms of optional sections, besides a mapping and null.
SHORT_FORMS = {"early_stopping": [{"type": "boolean"}, {"type": "integer"}], "logging": []}


def json_schema() -> dict[str, Any]:
    """Build the schema for the installed versions of transformers and Keel's components."""
    properties: dict[str, Any] = {
        "extends": {
            "description": "Training file(s) this one builds on; later keys win.",
            "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
        },
        **{name: {"description": f"In a task file: {text}", "type": "string"} for name, text in TASK_KEYS.items()},
    }
    for name, key in scalar_keys().items():
        if name not in REPLACED and name != "training_config":
            properties[name] = _key_schema(key)
    properties |= _section_schemas()
    for alias in sorted(yaml_keys() - set(REPLACED) - {"training_config"}):
        properties.setdefault(alias, {"description": "Alias of another system; the run prints the key it stands for."})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Keel training file",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }


def _section_schemas() -> dict[str, Any]:
    schemas: dict[str, Any] = {}
    for section in COMPONENTS:
        choices = [_component_schema(section, name) for name in shipped(section)]
        outside = {"type": "object", "properties": {"name": {"type": "string", "pattern": r"\."}}, "required": ["name"]}
        # An override of a component that another file names has no `name` itself.
        override = {"type": "object", "not": {"required": ["name"]}}
        schemas[section] = {
            "description": f"The {section}: `name` and its own keys, or a name in configs/{section}/.",
            "anyOf": [{"type": "string"}, *choices, outside, override],
        }
    for section, kind in FREE_SECTIONS.items():
        forms = [{"type": "string"}, {"type": "null"}, {**_dataclass_schema(kind), "additionalProperties": True}]
        schemas[section] = {"description": _description(kind), "anyOf": forms}
    for section, kind in OPTIONAL_SECTIONS.items():
        forms = [_dataclass_schema(kind), {"type": "null"}, *SHORT_FORMS.get(section, [{"type": "boolean"}])]
        schemas[section] = {"description": _description(kind), "anyOf": forms}
    group = LIST_SECTIONS["param_groups"]
    schemas["param_groups"] = {"type": "array", "items": _dataclass_schema(group), "description": _description(group)}
    schemas["callbacks"] = {
        "description": "Further transformers callbacks: import paths, or mappings with `name` and arguments.",
        "type": ["array", "string", "null"],
        "items": {"anyOf": [{"type": "string"}, {"type": "object", "required": ["name"]}]},
    }
    return schemas


def _description(kind: type) -> str:
    return " ".join((kind.__doc__ or "").split())


def _component_schema(section: str, name: str) -> dict[str, Any]:
    schema = _dataclass_schema(component_module(section, name).Config)
    schema["properties"] = {"name": {"const": name}, **schema["properties"]}
    schema["required"] = ["name"]
    return schema


def _dataclass_schema(kind: type) -> dict[str, Any]:
    properties = {name: _key_schema(key) for name, key in keys_of(kind).items()}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _key_schema(key: Key) -> dict[str, Any]:
    members = typing.get_args(key.annotation) or (key.annotation,)
    nested = [member for member in members if dataclasses.is_dataclass(member)]
    if nested:
        schema: dict[str, Any] = {"anyOf": [_dataclass_schema(nested[0]), {"type": "null"}]}
    else:
        from pydantic import TypeAdapter

        schema = TypeAdapter(key.annotation).json_schema()
    schema |= {BOUND_NAMES[name]: bound for name, bound in key.bounds.items()}
    if key.help:
        schema["description"] = key.help
    if key.default is not REQUIRED and isinstance(key.default, (str, int, float, bool, list, dict, type(None))):
        schema["default"] = key.default
    return schema
