"""Replace aliases by our own keys: most of them layer by layer, a few once all layers are known.

Those few depend on one another across layers: `init_from` with `gpt2_type` or `prev_run_ckpt`, `decay_lr`, and the
folders in which `model_builder` or `base_model_path` names a model.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from loader.errors import ConfigError, Problems
from loader.schema.alias_flags import IMPLYING_KEYS, SECTION_ALIASES
from loader.sources.config_tree import MISSING, Node, at_path, find, merge, missing_line, node_of
from loader.sources.key_aliases import ALIASES, FOREIGN_SECTIONS, NULLABLE, NotAvailable
from loader.sources.signal_aliases import extras_without_effect
from storage.suggestions import did_you_mean


def translate_aliases(tree: Node, problems: Problems) -> None:
    """Replace the aliases of one layer by our keys, in place, and add a note for each to `problems.notes`.

    Aliases that depend on other layers stay: `resolve_combined_aliases` and `resolve_model_sources` replace them.
    """
    _inherit_interval(tree)
    _lerobot(tree)
    implying = {alias for keys in IMPLYING_KEYS.values() for alias in keys}
    problems.aliases |= tree.value.keys() & (implying - set(SECTION_ALIASES))
    _check_training_mode(tree, problems)
    _eval_interval(tree, problems)
    if "dataloader_class" in tree.value:
        problems.lines += extras_without_effect(tree)
    for path, node in list(_aliases_in(tree, "")):
        target = ALIASES.get(path)
        if isinstance(target, NotAvailable):
            if node.value is not None:
                problems.add(f"not available yet: `{path}`{node.origin.place}: {target}")
        elif path in FOREIGN_SECTIONS:
            problems.add(f"`{path}`{node.origin.place} must be a mapping")
        elif target is None:
            remedy = did_you_mean(path, ALIASES, "; --print_schema lists every key")
            problems.add(f"unknown key `{path}`{node.origin.place}{remedy}")
        else:
            _assign(tree, path, node, target, problems)
        _remove(tree, path)
    for section in FOREIGN_SECTIONS:
        if not _is_model_name(section, tree.value.get(section)):
            tree.value.pop(section, None)
    if "loss" in tree.value and tree.value["loss"].value == {}:  # it held other systems' keys only
        del tree.value["loss"]


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


def _lerobot(tree: Node) -> None:
    """Make `dataset.name: lerobot` the layout of demonstrations that it is, unless the layer names another layout."""
    section = tree.value.get("dataset")
    name = section.value.get("name") if section is not None and section.is_mapping else None
    if name is not None and name.value == "lerobot":
        section.value["name"] = node_of("demonstrations", name.origin)
        section.value.setdefault("layout", node_of("lerobot", name.origin))


def _check_training_mode(tree: Node, problems: Problems) -> None:
    """Refuse a list of data sets that belongs to another `training_mode` than the one in this layer."""
    mode = tree.value.get("training_mode")
    for alias, needed in (("dataset_list", "multidataset"), ("multicontext_datasets", "multicontext")):
        node = tree.value.get(alias)
        if node is not None and mode is not None and mode.value != needed:
            problems.add(
                f"`{alias}`{node.origin.place} needs `training_mode: {needed}`, not {mode.plain()}{mode.origin.place}"
            )


def _eval_interval(tree: Node, problems: Problems) -> None:
    """Replace `eval_interval` by `eval_steps`, and by `save_steps` unless that is given."""
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
        problems.translated.append(f"eval_interval ({interval.origin}): `eval_steps`, `save_steps`: {interval.value}")


def _aliases_in(node: Node, path: str) -> Iterator[tuple[str, Node]]:
    """Yield every alias, and every unknown key of a section that only other systems have."""
    for key, child in node.value.items():
        child_path = f"{path}.{key}" if path else key
        is_section = any(alias.startswith(f"{child_path}.") for alias in ALIASES)
        if child_path in ALIASES:
            yield child_path, child
        elif is_section and child.is_mapping:
            yield from _aliases_in(child, child_path)
        elif (is_section and child.value is None) or _is_model_name(child_path, child):
            continue  # an empty section; `resolve_model_sources` reads the name of a model
        elif child_path.split(".")[0] in FOREIGN_SECTIONS:
            yield child_path, child


def _is_model_name(path: str, node: Node | None) -> bool:
    return path == "model_builder" and node is not None and isinstance(node.value, str)


def _assign(tree: Node, path: str, node: Node, target: object, problems: Problems) -> None:
    """Write the keys that one alias stands for."""
    if callable(target):
        try:
            assignments = target(node)
        except ConfigError as error:
            shown = path if node.is_mapping else f"{path}: {node.text or node.plain()}"
            problems.add(f"`{shown}`{node.origin.place} {error}")
            return
    else:
        keys = target if isinstance(target, tuple) else (target,)
        assignments = [(key, node) for key in keys if node.value is not None or key in NULLABLE]
    for key, value in assignments:
        other = find(tree, key)
        are_mappings = other is not None and other.is_mapping and value.is_mapping
        if other is not None and not are_mappings and other.plain() == value.plain():
            continue
        if other is not None and not (are_mappings and not set(other.value) & set(value.value)):
            problems.add(same_setting(path, node, key, other))
            continue
        tree.value = merge(tree, at_path(key, Node(value.value, value.origin, value.text, value.replaces))).value
    if assignments and [key.rpartition(".")[2] for key, _ in assignments] != [path.rpartition(".")[2]]:
        became = ", ".join(f"`{key}`" + _shown(value) for key, value in assignments)
        problems.translated.append(f"{path} ({node.origin}): {became}")


def _shown(node: Node) -> str:
    plain = node.plain()
    return "" if isinstance(plain, (dict, list)) else f": {'null' if plain is None else str(plain)}"


def _remove(tree: Node, path: str) -> None:
    section, _, key = path.rpartition(".")
    parent = find(tree, section) if section else tree
    if parent is not None and parent.is_mapping:
        parent.value.pop(key, None)


START_ALIASES = ("init_from", "gpt2_type", "prev_run_ckpt")
GPT2_TYPES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")


def resolve_combined_aliases(layers: list[Node], problems: Problems) -> None:
    """Replace these aliases by our keys, in place.

    The latest layer that gives an alias counts, and our keys are written into that layer, so that precedence holds.
    """
    _initial_weights(layers, problems)
    _decay(layers, problems)


def initial_weights_choice(layers: list[Node]) -> str | None:
    """Return the value of `init_from` in the latest layer that has it."""
    values = [layer.value["init_from"].value for layer in layers if "init_from" in layer.value]
    return str(values[-1]) if values and values[-1] is not None else None


def same_setting(alias: str, first: Node, key: str, second: Node) -> str:
    """Return the error line for a setting that is given under two names."""
    return f"`{alias}`{first.origin.place} and `{key}`{second.origin.place} are the same setting; keep one"


def pop_latest(layers: list[Node], alias: str) -> tuple[int, Node | None]:
    """Remove an alias from all layers and return the index of the latest layer with a value, and that value's node."""
    latest: tuple[int, Node | None] = (-1, None)
    for index, layer in enumerate(layers):
        node = layer.value.pop(alias, None)
        if node is not None and node.value is not None:
            latest = index, node
    return latest


def _initial_weights(layers: list[Node], problems: Problems) -> None:
    """Replace `init_from` by the keys that choose the network and its initial weights."""
    (start_at, start), (type_at, gpt2_type), (run_at, run) = (pop_latest(layers, alias) for alias in START_ALIASES)
    for alias, node in (("init_from", start), ("gpt2_type", gpt2_type), ("prev_run_ckpt", run)):
        if node is not None and (isinstance(node.value, (list, dict)) or not str(node.value).strip()):
            problems.add(f"`{alias}: {node.plain()}`{node.origin.place} must be a name; write one, or leave it out")
            return
    name = "" if start is None else str(start.value)
    for alias, node, index, has_effect, needed in (
        ("gpt2_type", gpt2_type, type_at, name in GPT2_TYPES, "gpt2"),
        ("prev_run_ckpt", run, run_at, name == "prev_run", "prev_run"),
    ):
        if node is not None and not has_effect and index >= start_at:
            context = f" with `init_from: {name}`{start.origin.place}" if start is not None else ""
            problems.add(
                f"`{alias}: {node.value}`{node.origin.place} has no effect{context}; set init_from {needed}, or leave "
                "it out"
            )
            return
    if start is None:
        return
    keys: dict[str, object] | None = {"model_name_or_path": None, "is_pretrained": False, "load_optimizer": False}
    if name == "resume":
        keys = {"resume_from_checkpoint": "newest"}
    elif name == "prev_run" and run is None:
        problems.add(f"`init_from: prev_run`{start.origin.place} needs `prev_run_ckpt`, the run it starts from")
        return
    elif name == "prev_run":
        keys = {"model_name_or_path": str(run.value), "is_pretrained": True, "load_optimizer": True}
    elif name in GPT2_TYPES:
        chosen = _gpt2_name(name, start, gpt2_type, type_at - start_at, problems)
        if chosen is None:
            return
        keys |= {"model_config": "gpt", "model_name_or_path": chosen}
    elif name != "scratch":
        keys |= {"model_config": "auto", "model_name_or_path": name}
    _write(layers[start_at], keys, start, problems)


def _gpt2_name(name: str, start: Node, gpt2_type: Node | None, layers_later: int, problems: Problems) -> str | None:
    """Return which of GPT-2's weights to load; None after a problem.

    Args:
        layers_later: How many layers after `init_from` the `gpt2_type` is given; negative: before it.
    """
    if gpt2_type is None:
        return name
    if layers_later == 0 and name not in ("gpt2", gpt2_type.value):
        problems.add(f"`init_from: {name}`{start.origin.place} and `gpt2_type: {gpt2_type.value}` contradict; keep one")
        return None
    chosen = name if layers_later < 0 and name != "gpt2" else str(gpt2_type.value)
    if chosen in GPT2_TYPES or "/" in chosen or os.path.isdir(os.path.expanduser(chosen)):
        return chosen
    remedy = did_you_mean(chosen, GPT2_TYPES, f"; use {', '.join(GPT2_TYPES)}, a hub id or a folder")
    problems.add(f"unknown `gpt2_type: {chosen}`{gpt2_type.origin.place}{remedy}")
    return None


def _write(layer: Node, keys: dict[str, object], start: Node, problems: Problems) -> None:
    """Write the keys that `init_from` stands for into the layer that gives it; later layers still override them.

    A network that the same layer names is built with these weights.
    """
    for key, value in keys.items():
        given = layer.value.setdefault(key, node_of(value, start.origin))
        # null and false only reset an earlier layer
        if given.plain() != value and value not in (None, False) and key != "model_config":
            problems.add(same_setting("init_from", start, key, given))
    found = {key: layer.value[key].plain() for key, value in keys.items() if value not in (None, False)}
    effective = [f"`{key}: {value}`" for key, value in found.items()]
    problems.translated.append(f"init_from {start.value} ({start.origin}): {', '.join(effective) or 'random weights'}")


def _decay(layers: list[Node], problems: Problems) -> None:
    """Replace `decay_lr`: true is a cosine unless another schedule is named, false a constant rate."""
    decay_at, decay = pop_latest(layers, "decay_lr")
    if decay is None:
        return
    if not isinstance(decay.value, bool):
        problems.add(f"`decay_lr: {decay.text or decay.plain()}`{decay.origin.place} must be true or false")
        return
    named = [index for index, layer in enumerate(layers) if "lr_scheduler_type" in layer.value]
    schedule_at = named[-1] if named else -1
    if schedule_at > decay_at:
        return  # a later layer names the schedule itself
    schedule = layers[schedule_at].value["lr_scheduler_type"] if named else None
    is_constant = schedule is not None and schedule.value == "constant"
    if schedule_at == decay_at and is_constant == decay.value:
        problems.add(
            f"`decay_lr: {str(decay.value).lower()}`{decay.origin.place} contradicts the schedule "
            f"`{schedule.value}`{schedule.origin.place}; leave one out"
        )
    elif not decay.value:
        layers[decay_at].value["lr_scheduler_type"] = Node("constant", decay.origin, "none")
    elif schedule is None or is_constant:
        layers[decay_at].value["lr_scheduler_type"] = node_of("cosine", decay.origin)


MODELS = ("base_model_path", "model_builder")  # of both in one layer, the path counts
FOLDERS = ("hf_models_dir", "finetuned_models_dir")


def resolve_model_sources(layers: list[Node], problems: Problems) -> None:
    """Replace these aliases by our keys, in place.

    `model_name_or_path` is written into the layer that names the model, so that precedence holds. With
    `finetuned_models_dir`, the run's folder is `MODEL-finetuned` in there, unless `output_dir` is set.
    """
    latest = {key: pop_latest(layers, key) for key in (*MODELS, *FOLDERS)}
    folders = {key: node for key in FOLDERS if (node := latest[key][1]) is not None}
    key = max(MODELS, key=lambda name: latest[name][0])
    at, model = latest[key]
    if _source_problems(key, model, folders, problems):
        return
    named_at = [index for index, layer in enumerate(layers) if "model_name_or_path" in layer.value]
    if named_at and named_at[-1] >= at:  # a later layer names the weights itself
        own = layers[named_at[-1]].value["model_name_or_path"]
        for name, (index, node) in latest.items():
            if node is not None and index >= named_at[-1]:
                problems.add(same_setting(name, node, "model_name_or_path", own))
        return
    source = _model_source(key, model, folders, problems)
    if source is None:
        return
    layers[at].value["model_name_or_path"] = node_of(source, model.origin)
    problems.note(f"{key} {model.value} ({model.origin}) is `model_name_or_path: {source}`")
    finetuned = folders.get("finetuned_models_dir")
    if finetuned is not None and not any(find(layer, "output_dir") for layer in layers):
        # Another name than the model's, which must mean the same model when the run is resumed.
        folder = os.path.join(finetuned.value, f"{_model_name(model, source)}-finetuned")
        layers[0].value["output_dir"] = node_of(folder, finetuned.origin)
        problems.note(f"finetuned_models_dir ({finetuned.origin}) holds the run: `output_dir: {folder}`")


def _source_problems(key: str, model: Node | None, folders: dict[str, Node], problems: Problems) -> bool:
    """Add a problem for each value that is missing or no text; whether there is nothing to resolve."""
    if model is None:
        lines = [f"`{name}`{node.origin.place} needs {' or '.join(MODELS)}" for name, node in folders.items()]
    else:
        given = {key: model, **folders}
        lines = [missing_line(name, node) for name, node in given.items() if node.value == MISSING]
        wrong = {name: node for name, node in given.items() if not isinstance(node.value, str)}
        lines += [f"`{name}`{node.origin.place} must be a folder or a name" for name, node in wrong.items()]
    for line in lines:
        problems.add(line)
    return model is None or bool(lines)


def _model_source(key: str, model: Node, folders: dict[str, Node], problems: Problems) -> str | None:
    """Return the folder or hub id that a name stands for; None after a problem."""
    name = model.value
    if os.path.isdir(os.path.expanduser(name)):
        return name
    hub_id = name.replace("-", "/", 1) if key == "model_builder" and "/" not in name else name
    spellings = (name, hub_id, hub_id.replace("/", "-"))
    candidates = dict.fromkeys(Path(node.value, spelling) for node in folders.values() for spelling in spellings)
    existing = [path for path in candidates if path.expanduser().is_dir()]
    if len(existing) == 1:
        return str(existing[0])
    if not existing and "hf_models_dir" not in folders:
        return hub_id
    shown = f"`{key}: {name}`{model.origin.place}"
    if existing:
        problems.add(f"{shown} is both {existing[0]} and {existing[1]}; write the folder's path")
        return None
    places = " or ".join(f"`{key}: {node.value}`{node.origin.place}" for key, node in folders.items())
    problems.add(f"{shown} is no folder in {places}; without these keys, the hub's {hub_id} is loaded")
    return None


def _model_name(model: Node, source: str) -> str:
    """Return a model's name without slashes: a folder's own, or the hub's."""
    name = model.value
    return os.path.basename(source.rstrip("/")) if os.path.isdir(os.path.expanduser(name)) else name.replace("/", "-")
