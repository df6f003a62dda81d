"""Keys of components that have no effect beside another key: one that they need is off, or one replaces them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from loader.errors import Problems, shown
from loader.resolve.run_config import RunConfig
from loader.schema.keys import Key, keys_of
from loader.schema.sections import COMPONENTS
from loader.sources.config_tree import DEFAULT, find, node_of


def check_switches(run: RunConfig, problems: Problems) -> None:
    """Refuse a key without effect (`needs`, `unless`); drop it if a later layer than its own has made it so."""
    for section in COMPONENTS:
        component = getattr(run, section)
        if component is not None:
            _check(section, component.config, component.config, run, problems)


def _check(path: str, config: Any, component: Any, run: RunConfig, problems: Problems) -> None:
    """Check the keys of `config`, which is the section at `path` of a component's configuration."""
    for name, key in keys_of(type(config)).items():
        value = getattr(config, name)
        other = next((other for other in key.unless if _value(component, other)), None)
        is_off = not _is_on(config, key)
        if not is_off and (other is None or not value):  # 0, for one, is no contradiction
            if dataclasses.is_dataclass(value):
                _check(f"{path}.{name}", value, component, run, problems)
            continue
        switch = f"{path}.{key.needs}" if is_off else f"{path.partition('.')[0]}.{other}"
        if is_off:
            needed = f"`{switch}`" if key.needs_value is None else f"`{switch}: {' or '.join(key.needs_value)}`"
            refusal = f"without {needed}; set that, or leave it out"
            reason = f"`{switch}` is {shown(getattr(config, key.needs))}"
        else:
            given = f"`{switch}: {shown(_value(component, other))}`"
            refusal, reason = f"beside {given}; keep one", f"{given} has precedence"
        for holder, holder_path, field, default in list(_changed(config, path, name, key.default)):
            changed = f"{holder_path}.{field}"
            text = f"`{changed}: {shown(getattr(holder, field))}`"
            if run.layer_index(changed) >= run.layer_index(switch):
                problems.add(f"{text}{run.place(changed)} has no effect {refusal}")
                continue
            run.notes.append(f"{text} ({run.origins()[changed]}) is dropped: {reason}")
            setattr(holder, field, default)
            find(run.tree, holder_path).value[field] = node_of(default, DEFAULT)


def _is_on(config: Any, key: Key) -> bool:
    """Whether the switch of a key, if it has one, is on or has one of the values that the key needs."""
    if key.needs is None:
        return True
    value = getattr(config, key.needs)
    return bool(value) if key.needs_value is None else value in key.needs_value


def _value(config: Any, path: str) -> Any:
    """The value of a key; None if a section on its path is not set."""
    for name in path.split("."):
        config = getattr(config, name, None)
    return config


def _changed(config: Any, path: str, name: str, default: Any) -> Iterator[tuple[Any, str, str, Any]]:
    """(dataclass, its path, field, default) of a key, or of each key in a section, that is not at its default."""
    value = getattr(config, name)
    if dataclasses.is_dataclass(value):
        for inner, key in keys_of(type(value)).items():
            yield from _changed(value, f"{path}.{name}", inner, key.default)
    elif value != default:
        yield config, path, name, default
