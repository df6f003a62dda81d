"""A task or model file that a later layer names supersedes what earlier training files say for another component."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from loader.errors import ConfigError, Problems, shown
from loader.resolve.rules import is_by_user
from loader.schema.components import component_module
from loader.schema.keys import keys_of
from loader.sources import layers
from loader.sources.config_tree import Node, find, leaves

CHOICES = (("dataset", "task", "task_name"), ("model", "model", "model_config"))
# Keys that say which weights a model starts from.
WEIGHTS = ("model_name_or_path", "is_pretrained", "load_pretrain", "load_optimizer")


def drop_superseded(below: Sequence[Node], above: Sequence[Node], problems: Problems) -> None:
    """Drop, in place, what training files say for a component that a later layer has replaced by another.

    That is the whole section if it names that component, otherwise those of its keys that the new one does not have;
    of a model also the weights that it starts from. Each gets a note if the user made the choice.

    Args:
        below, above: Layers below and above the task and model files; the last two are the command line.
    """
    for section, kind, key in CHOICES:
        names = _chosen(section, kind, key, [*below, *above])[len(below) :]
        last = max((index for index in range(1, len(names)) if names[index] != names[index - 1]), default=0)
        chooser = next(filter(None, (find(above[last], path) for path in (f"{section}.name", key, "task_name"))), None)
        for layer, name in zip(above[: min(last, len(above) - 2)], names, strict=False):
            if chooser is None or None in (name, names[last]) or name == names[last]:
                continue
            note = _noter(problems, f"`{section}.name: {names[last]}` ({chooser.origin})", is_by_user(chooser.origin))
            _drop_section(layer, section, name, names[last], note)
            for weights in WEIGHTS if section == "model" else ():
                if weights in layer.value:
                    note(weights, layer.value.pop(weights))


def note_overridden(named: Sequence[Node], above: Sequence[Node], problems: Problems) -> None:
    """Note each key of a user's file, named on the command line, that an earlier training file overrides.

    Args:
        named: The task and model files.
        above: Layers above them; the last two are the command line.
    """
    files, command_line = above[:-2], above[-2:]
    for section, _, key in CHOICES:
        if not any(key in layer.value for layer in command_line):
            continue
        given = [leaf for layer in named for leaf in leaves(layer) if leaf[0].startswith(f"{section}.")]
        for path, node in given:
            winner = next((other for layer in reversed(files) if (other := find(layer, path)) is not None), None)
            if winner is None or not is_by_user(node.origin):
                continue
            if any(find(layer, path) is not None for layer in command_line):
                continue
            if winner.plain() != node.plain():
                problems.note(
                    f"`{path}: {shown(node.plain())}` ({node.origin}) becomes {shown(winner.plain())} "
                    f"({winner.origin}): a training file has precedence over a {key.partition('_')[0]} file"
                )


def _noter(problems: Problems, choice: str, is_wanted: bool) -> Callable[[str, Node], None]:
    def note(path: str, node: Node) -> None:
        value = "" if node.is_mapping else f": {shown(node.plain())}"
        if is_wanted:
            problems.note(f"`{path}{value}` ({node.origin}) is dropped: {choice} has precedence")

    return note


def _drop_section(layer: Node, section: str, before: str, now: str, note: Callable[[str, Node], None]) -> None:
    node = layer.value.get(section)
    if node is None or not node.is_mapping:
        return
    if "name" in node.value:
        note(f"{section}.name", node.value["name"])
        del layer.value[section]
        return
    unknown = _keys(section, before) - _keys(section, now)
    for key in [key for key in node.value if key in unknown]:
        note(f"{section}.{key}", node.value[key])
    kept = {key: child for key, child in node.value.items() if key not in unknown}
    layer.value[section] = Node(kept, node.origin, node.text, node.replaces)


def _keys(section: str, name: str) -> set[str]:
    """The keys of a component; none if it cannot be imported, which is reported where it is built."""
    try:
        return set(keys_of(component_module(section, name).Config))
    except ConfigError:
        return set()


def _chosen(section: str, kind: str, key: str, stack: Sequence[Node]) -> list[str | None]:
    """For each layer, the component that it and those below it choose; None if they choose none."""
    names: list[str | None] = []
    explicit: Node | None = None  # named by a layer itself
    of_task: Node | None = None  # named by the task's file
    for layer in stack:
        named, file = find(layer, f"{section}.name"), layer.value.get(key)
        if named is not None:
            explicit = named
        elif file is not None and file.value is not None:
            explicit = _component_in(section, kind, file)
        task = layer.value.get("task_name")
        if section == "model" and task is not None:
            of_task = _component_in("model", "task", task) if task.value is not None else None
        node = explicit or of_task
        names.append(node.value if node is not None and isinstance(node.value, str) else None)
    return names


def _component_in(section: str, kind: str, name: Node) -> Node | None:
    """The component that a task or model file chooses; None if the file cannot be read, which is reported elsewhere."""
    try:
        file = layers.file_layer(kind, layers.find_file(kind, str(name.text or name.value)), Problems())
    except ConfigError:
        return None
    if (named := find(file, f"{section}.name")) is not None:
        return named
    model = file.value.get("model_config") if section == "model" else None
    return _component_in("model", "model", model) if model is not None and model.value is not None else None
