"""Replace aliases by our own keys in one layer of the configuration."""

from __future__ import annotations

from collections.abc import Iterator

from loader.errors import ConfigError, Problems, did_you_mean
from loader.schema.alias_flags import SECTION_ALIASES, alias_paths
from loader.sources.combined_aliases import same_setting
from loader.sources.config_tree import Node, find
from loader.sources.key_aliases import ALIASES, DATALOADER_CLASSES, FOREIGN_SECTIONS, NULLABLE, NotAvailable


def translate_aliases(tree: Node, problems: Problems) -> None:
    """Replace the aliases of one layer by our keys, in place, and add a note for each to `problems.notes`.

    Aliases that depend on other layers stay; `combined_aliases.py` resolves them once all layers are read.
    """
    _merge_dataloader_builder(tree, problems)
    _inherit_interval(tree)
    problems.aliases |= tree.value.keys() & alias_paths().keys() - set(SECTION_ALIASES)
    _check_training_mode(tree, problems)
    _eval_interval(tree, problems)
    for path, node in list(_aliases_in(tree, "")):
        target = ALIASES.get(path)
        if path == "dataloader_class":
            target = DATALOADER_CLASSES.get(str(node.value), target)
        if isinstance(target, NotAvailable):
            if node.value is not None:
                problems.add(f"not available yet: `{path}`{node.origin.place}: {target}")
        elif target is None:
            remedy = did_you_mean(path, ALIASES) or "; --print_schema lists every key"
            problems.add(f"unknown key `{path}`{node.origin.place}{remedy}")
        else:
            _assign(tree, path, node, target, problems)
        _remove(tree, path)
    for section in FOREIGN_SECTIONS:
        tree.value.pop(section, None)
    if "loss" in tree.value and tree.value["loss"].value == {}:  # it held other systems' keys only
        del tree.value["loss"]


def _merge_dataloader_builder(tree: Node, problems: Problems) -> None:
    """Treat `dataloader_builder:` as `dataloader:`."""
    builder = tree.value.pop("dataloader_builder", None)
    if builder is None:
        return
    section = tree.value.setdefault("dataloader", Node({}, builder.origin))
    if section.is_mapping and builder.is_mapping:
        for key, child in builder.value.items():
            if key in section.value:
                problems.add(same_setting(f"dataloader_builder.{key}", child, f"dataloader.{key}", section.value[key]))
            section.value.setdefault(key, child)


def _inherit_interval(tree: Node) -> None:
    """Give Lightning's warm-up the interval of the scheduler beside it, unless it has its own."""
    section = tree.value.get("lightning")
    if section is None or not section.is_mapping:
        return
    warmup, scheduler = section.value.get("lr_warmup"), section.value.get("lr_scheduler")
    if warmup is not None and scheduler is not None and warmup.is_mapping and scheduler.is_mapping:
        interval = scheduler.value.get("interval")
        if interval is not None:
            warmup.value.setdefault("interval", interval)


def _check_training_mode(tree: Node, problems: Problems) -> None:
    """Refuse a list of data sets that belongs to another `training_mode` than the one in this layer."""
    mode = tree.value.get("training_mode")
    for alias, needed in (("dataset_list", "multidataset"), ("multicontext_datasets", "multicontext")):
        node = tree.value.get(alias)
        if node is not None and mode is not None and mode.value != needed:
            problems.add(
                f"`{alias}`{node.origin.place} needs `training_mode: {needed}`, not {mode.value}{mode.origin.place}"
            )


def _eval_interval(tree: Node, problems: Problems) -> None:
    """`eval_interval` is how often to evaluate, and how often to save unless `save_steps` says otherwise."""
    interval = tree.value.pop("eval_interval", None)
    if interval is None:
        return
    if "eval_steps" in tree.value:
        problems.add(same_setting("eval_interval", interval, "eval_steps", tree.value["eval_steps"]))
    elif isinstance(interval.value, int) and interval.value < 1:
        problems.add(f"`eval_interval: {interval.value}`{interval.origin.place} must be at least 1")
    else:
        tree.value["eval_steps"] = interval
        tree.value.setdefault("save_steps", interval)
        problems.note(f"eval_interval ({interval.origin}) is `eval_steps` and `save_steps`: {interval.value}")


def _aliases_in(node: Node, path: str) -> Iterator[tuple[str, Node]]:
    """Every node that the table names, and every unknown node in a section that only other systems have."""
    for key, child in node.value.items():
        child_path = f"{path}.{key}" if path else key
        is_section = any(alias.startswith(f"{child_path}.") for alias in ALIASES)
        if child_path in ALIASES:
            yield child_path, child
        elif is_section and child.is_mapping:
            yield from _aliases_in(child, child_path)
        elif is_section and child.value is None:
            continue  # an empty section
        elif child_path.split(".")[0] in FOREIGN_SECTIONS:
            yield child_path, child


def _assign(tree: Node, path: str, node: Node, target: object, problems: Problems) -> None:
    """Write the keys that one alias stands for."""
    if callable(target):
        try:
            assignments = target(node)
        except ConfigError as error:
            shown = path if node.is_mapping else f"{path}: {node.text or node.value}"
            problems.add(f"`{shown}`{node.origin.place} {error}")
            return
    else:
        assignments = [(target, node)] if node.value is not None or target in NULLABLE else []
    for key, value in assignments:
        other = find(tree, key)
        are_mappings = other is not None and other.is_mapping and value.is_mapping
        if other is not None and not (are_mappings and not set(other.value) & set(value.value)):
            problems.add(same_setting(path, node, key, other))
            continue
        _insert(tree, key, value)
    if assignments:
        became = ", ".join(f"`{key}`" + _shown(value) for key, value in assignments)
        problems.note(f"{path} ({node.origin}) is {became}")


def _shown(node: Node) -> str:
    plain = node.plain()
    return "" if isinstance(plain, (dict, list)) else f": {'null' if plain is None else str(plain)}"


def _insert(tree: Node, path: str, node: Node) -> None:
    *sections, key = path.split(".")
    for section in sections:
        child = tree.value.get(section)
        if child is None or not child.is_mapping:
            child = tree.value[section] = Node({}, node.origin)
        tree = child
    if key in tree.value and tree.value[key].is_mapping and node.is_mapping:
        for name, child in node.value.items():
            tree.value[key].value.setdefault(name, child)
    else:
        tree.value[key] = Node(node.value, node.origin, node.text, node.replaces)


def _remove(tree: Node, path: str) -> None:
    *sections, key = path.split(".")
    for section in sections:
        tree = tree.value.get(section)
        if tree is None or not tree.is_mapping:
            return
    tree.value.pop(key, None)
