"""Resolve flags, YAML files and `--set` overrides: layers -> one merged tree -> a typed RunConfig."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from loader.errors import ConfigError, Problems, quoted
from loader.resolve.precedence import drop_superseded, note_overridden, resolve_conflicts
from loader.resolve.run_config import RunConfig
from loader.resolve.type_check import check_dataclass, check_value, mapping_of_text
from loader.schema.alias_flags import IMPLYING_KEYS
from loader.schema.hyper_arguments import HyperArguments
from loader.schema.keys import (
    COMPONENTS,
    FREE_SECTIONS,
    LIST_SECTIONS,
    OPTIONAL_SECTIONS,
    REPLACED,
    SECTIONS,
    TASK_KEYS,
    Component,
    component_module,
    keys_of,
    scalar_keys,
    section_of,
    shipped,
)
from loader.schema.process_arguments import ProcessArguments
from loader.sources import layers
from loader.sources.config_tree import DEFAULT, MISSING, Node, find, leaves, merge, missing_line, node_of
from loader.sources.key_aliases import yaml_keys
from loader.sources.translate_aliases import initial_weights_choice, resolve_combined_aliases, resolve_model_sources
from storage.config_keys import contract_problems
from storage.suggestions import did_you_mean

# Kinds of file that a key names.
FILE_KINDS = (("task", "task_name"), ("model", "model_config"))
# Choosing another optimizer or schedule drops the constructor arguments of the earlier one.
CHOSEN_BY = {"optim": "optimizer", "lr_scheduler_type": "scheduler"}


def resolve(
    hyper: HyperArguments | None = None,
    settings: list[str] | None = None,
    training_config: str | os.PathLike | None = None,
    aliases: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Merge flags, YAML and `--set` overrides into one validated RunConfig.

    Args:
        hyper: The flags that were given; YAML decides all others.
        settings: `key.path=value` strings, which override everything else.
        training_config: The training file; None: `hyper.training_config`, or the one that the task names.
        aliases: Flags in the spelling of language-model scripts, see `loader.schema.alias_flags`.

    Raises:
        ConfigError: with every problem found, one line each.
    """
    hyper, aliases, problems = hyper or HyperArguments(), aliases or {}, Problems()
    settings = [settings] if isinstance(settings, str) else settings
    flags, overrides = layers.flag_layer(hyper, aliases, problems), layers.set_layer(settings or [], problems)
    words, problems.aliases = aliases.keys() | problems.aliases, set()
    chosen = training_config or hyper.training_config
    if chosen is None and initial_weights_choice([flags, overrides]) == "resume" and "task_name" not in hyper.given:
        chosen = _resumed_file(flags)
    training = _training(chosen, problems) if chosen is not None else []
    described = _task_of_file(problems.aliases, training)
    implied = described or _implied_task(words, [overrides])
    below = [layers.built_in_layer(**implied), *layers.training_layers(layers.DEFAULT_FILE, problems)]
    stack = [*below, *training, flags, overrides]
    if chosen is None:
        training = _recipe_of_task("training", stack, problems)
    elif described.get("task_name") is not None and _merged(stack).value["task_name"].value == described["task_name"]:
        training = [*_recipe_of_task("defaults", stack, problems), *training]
    above = [*training, flags, overrides]
    resolve_model_sources(above, problems)
    start = initial_weights_choice(above)
    resolve_combined_aliases(above, problems)
    if start == "prev_run":
        above = [*_earlier_network(_merged([*below, *above])), *above]
    drop_superseded(below, above, problems)
    named = _task_and_model_layers(below, above, problems)
    note_overridden(named, above, problems)
    for layer in named:
        for key in TASK_KEYS:
            layer.value.pop(key, None)
    stack = [*below, *named, *_earlier_model([*below, *named, *above]), *above]
    return _typed(stack, problems)


def _task_of_file(aliases: Set[str], training: list[Node]) -> dict[str, str | None]:
    """The default of `task_name` that follows from a training file, as a mapping; empty if nothing follows."""
    if any(find(layer, "dataset.name") for layer in training):
        return {"task_name": None}  # a training file with its own data is its own task
    return {} if any(find(layer, "task_name") for layer in training) else _implied_task(aliases, training)


def _implied_task(aliases: Set[str], stack: list[Node]) -> dict[str, str]:
    """The default of `task_name` that follows from keys of one task, as a mapping; empty if nothing follows."""
    for task, keys in IMPLYING_KEYS.items():
        if aliases & set(keys) or any("." in key and find(layer, key) for key in keys for layer in stack):
            return {"task_name": task}
    return {}


def _recipe_of_task(key: str, stack: list[Node], problems: Problems) -> list[Node]:
    """Return the layers of a training file that the task's file names, if any.

    Args:
        key: `training`, the recipe if no training file is named, or `defaults`, the defaults of a training file whose
            keys imply the task.
    """
    task = _task_and_model_layers(stack, [], Problems(), kinds=(("task", "task_name"),))
    recipe = task[0].value.get(key) if task else None
    if recipe is None:
        return []
    return _training(layers.find_file("training", str(recipe.value), recipe.origin.place), problems)


def _earlier_network(tree: Node) -> list[Node]:
    """The layer for `init_from: prev_run`: that run's network, which any other layer overrides."""
    model = _model_of(tree.value["model_name_or_path"].value)
    return [] if model is None else [Node({"model_config": model.value["name"]}, model.origin)]


def _earlier_model(stack: list[Node]) -> list[Node]:
    """The layer for `is_pretrained`: the model settings its weights were trained with, which user layers override."""
    tree = _merged(stack)
    name, model = find(tree, "model.name"), _model_of(tree.value["model_name_or_path"].value)
    if tree.value["is_pretrained"].value is not True or name is None or model is None:
        return []
    return [Node({"model": model}, model.origin)] if model.value["name"].value == name.value else []


def _model_of(path: Any) -> Node | None:
    """The section `model` of the run in a folder; None if it cannot be read (loading its weights reports why)."""
    file = Path(os.path.expanduser(path)) / "run.yaml" if isinstance(path, str) else None
    try:
        model = layers.training_layers(file, Problems())[-1].value.get("model") if file and file.is_file() else None
    except ConfigError:
        return None
    return model if model is not None and model.is_mapping and "name" in model.value else None


def _training(chosen: str | os.PathLike, problems: Problems) -> list[Node]:
    """The layers of a training file; none for default.yaml, which is always there."""
    path = layers.find_file("training", os.fspath(chosen))
    return layers.training_layers(path, problems) if path.resolve() != layers.DEFAULT_FILE.resolve() else []


def _resumed_file(flags: Node) -> Path:
    """run.yaml of the run that `--init_from resume` continues, so that its flags need not be repeated."""
    folder = flags.value.get("output_dir")
    path = Path(os.path.expanduser(str(folder.value) if folder is not None else "out")) / "run.yaml"
    if not path.is_file():
        raise ConfigError(
            f"`--init_from resume`: there is no run to resume in {path.parent} (no run.yaml); name its folder with "
            "--out_dir"
        )
    return path


def read_saved(path: str | os.PathLike, text: str | None = None, settings: Sequence[str] = ()) -> RunConfig:
    """Read the RunConfig of an earlier run from its run.yaml alone, without task, model or default files.

    Args:
        text: The content of the file, if it has been read already.
        settings: `key.path=value` strings, which override what the file says.
    """
    problems = Problems()
    saved = layers.training_layers(path, problems) if text is None else [layers.text_layer(path, text, problems)]
    resolve_combined_aliases(saved, problems)
    overrides = [layers.set_layer(list(settings), problems)] if settings else []
    return _typed([layers.built_in_layer(), *saved, *overrides], problems, is_saved=True)


def _merged(stack: list[Node]) -> Node:
    """Merge the layers. A layer that names another component drops the keys of the earlier one."""
    tree = Node({}, DEFAULT)
    for layer in stack:
        for section in COMPONENTS:
            before, now = find(tree, f"{section}.name"), find(layer, f"{section}.name")
            if before is not None and now is not None and before.value != now.value:
                del tree.value[section]
        for key, section in CHOSEN_BY.items():
            before, now = tree.value.get(key), layer.value.get(key)
            if now is not None and (before is None or before.value != now.value):
                tree.value.pop(section, None)
        tree = merge(tree, layer)
    return tree


def _task_and_model_layers(
    below: list[Node], above: list[Node], problems: Problems, kinds: Sequence[tuple[str, str]] = FILE_KINDS
) -> list[Node]:
    """The files that `task_name` and `model_config` name, whichever layer names them last."""
    files: list[Node] = []
    for kind, key in kinds:
        tree = _merged([*below, *files, *above])
        name = tree.value.get(key)
        if name is None or name.value is None or isinstance(name.value, (list, dict)):
            continue
        try:
            path = layers.find_file(kind, str(name.text or name.value), name.origin.place)
            is_named = find(tree, "model.name") is not None
            files.insert(0, layers.file_layer(kind, path, problems, is_named))  # a task may override its model's keys
        except ConfigError as error:
            problems.lines += error.problems
            problems.file_missing = True
    return files


def _typed(stack: list[Node], problems: Problems, is_saved: bool = False) -> RunConfig:
    """Merge the layers and build the typed views."""
    tree = _merged(stack)
    missing = [missing_line(path, node) for path, node in leaves(tree) if node.value == MISSING]
    if missing:
        raise ConfigError([*problems.lines, *missing])
    resolve_conflicts(tree, stack, problems, is_saved)
    values = _scalars(tree, problems)
    parts: dict[str, Any] = {}
    for section, kind in FREE_SECTIONS.items():
        node = _mapping(tree, section, problems)
        checked = check_dataclass(section, node, kind, problems, free=True) if node else None
        parts[section] = checked.extra if checked else {}
        if getattr(checked, "betas", None):  # three betas belong to the constructor; two are adam_beta1, adam_beta2
            parts[section]["betas"] = checked.betas
        if section == "scheduler" and checked:
            parts["schedule"] = checked
    for section, kind in OPTIONAL_SECTIONS.items():
        node = _mapping(tree, section, problems)
        parts[section] = check_dataclass(section, node, kind, problems) if node else None
    parts["param_groups"] = _parameter_groups(tree, problems)
    parts["callbacks"] = _callbacks(tree, problems)
    for section in COMPONENTS:
        parts[section] = _component(tree, section, problems)
    problems.raise_if_any()
    hyper = HyperArguments(**{name: values[name] for name in keys_of(HyperArguments)})
    process = ProcessArguments(**{name: values[name] for name in keys_of(ProcessArguments)})
    declared = {*keys_of(HyperArguments), *keys_of(ProcessArguments)}
    trainer = {name: value for name, value in values.items() if name not in declared}
    return RunConfig(tree, stack, hyper, process, trainer, notes=problems.all_notes(), **parts)


def _scalars(tree: Node, problems: Problems) -> dict[str, Any]:
    """Check every top-level key that is not a section; unknown keys are problems."""
    keys, values = scalar_keys(), {}
    for name, node in tree.value.items():
        if name in SECTIONS:
            continue
        if name in REPLACED:
            problems.add(f"`{name}`{node.origin.place} has no effect here: {REPLACED[name]}")
        elif name in keys:
            node = tree.value[name] = mapping_of_text(name, node, keys[name], problems)
            values[name] = check_value(name, node, keys[name], problems)
        else:
            problems.add(f"unknown key `{name}`{node.origin.place}{_remedy(name)}")
    return values


def _remedy(name: str) -> str:
    """Return where an unknown top-level key belongs, or the nearest known one."""
    if section := section_of(name):
        return f"; it is a key of `{section}`: write it under `{section}:`"
    return did_you_mean(name, yaml_keys(), "; --print_schema lists every key")


def _mapping(tree: Node, section: str, problems: Problems) -> Node | None:
    node = tree.value.get(section)
    if node is None or node.value is None:
        return None
    if not node.is_mapping:
        problems.add(f"`{section}`{node.origin.place} must be a mapping, or the name of a file in configs/{section}/")
        return None
    return node


def _parameter_groups(tree: Node, problems: Problems) -> list[Any]:
    node = tree.value.get("param_groups")
    if node is None or node.value is None:
        return []
    if not isinstance(node.value, list) or not all(group.is_mapping for group in node.value):
        problems.add(
            f"`param_groups`{node.origin.place} must be a list of mappings with `pattern` and `lr` or `lr_factor`"
        )
        return []
    checked = [
        check_dataclass(f"param_groups[{index}]", group, LIST_SECTIONS["param_groups"], problems)
        for index, group in enumerate(node.value)
    ]
    return [group for group in checked if group is not None]


def _callbacks(tree: Node, problems: Problems) -> list[str | dict[str, Any]]:
    """`callbacks`: import paths, or mappings with `name` and the constructor's arguments."""
    node = tree.value.get("callbacks")
    if node is None or node.value is None:
        return []
    if not isinstance(node.value, list):
        problems.add(f"`callbacks`{node.origin.place} must be a list of import paths, or of mappings with `name`")
        return []
    for index, entry in enumerate(node.value):
        name = entry.value.get("name") if entry.is_mapping else entry
        if name is None or not isinstance(name.value, str) or "." not in name.value:
            problems.add(
                f"`callbacks[{index}]`{entry.origin.place} must be an import path (my_lab.callbacks.Mine), or "
                "a mapping with such a `name` and the arguments"
            )
    return [entry.plain() for entry in node.value]


def _component(tree: Node, section: str, problems: Problems) -> Component | None:
    """Import the component that `name` names, and check the other keys against its Config."""
    node = _mapping(tree, section, problems)
    if node is None:
        return None
    name = node.value.get("name")
    if name is None or not isinstance(name.value, str):
        if not problems.file_missing:
            problems.add(f"`{section}`{node.origin.place} has no `name`; shipped: {quoted(shipped(section))}")
        return None
    try:
        module = component_module(section, name.value, name.origin.place)
    except ConfigError as error:
        problems.lines += error.problems
        return None
    for line in contract_problems(section, module):
        problems.add(f"`{section}.name: {name.value}`{name.origin.place}: {line}")
    rest = Node({key: child for key, child in node.value.items() if key != "name"}, node.origin)
    config = check_dataclass(section, rest, module.Config, problems)
    if config is None:
        return None
    # The tree includes the component's defaults, too, for --print_config and run.yaml; the layers stay unchanged.
    defaults = {
        key: node_of(_plain(getattr(config, key)), DEFAULT) for key in keys_of(module.Config) if key not in node.value
    }
    tree.value[section] = Node({**node.value, **defaults}, node.origin)
    return Component(name.value, module, config)


def _plain(value: Any) -> Any:
    """A nested section as a mapping."""
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value
