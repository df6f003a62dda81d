"""Read the files and flags of a run as layers, lowest precedence first: trees of values with their places."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loader.errors import ConfigError, Problems, quoted
from loader.schema.alias_flags import SECTION_ALIASES, alias_paths
from loader.schema.hyper_arguments import HyperArguments
from loader.schema.keys import FILE_SECTIONS, FREE_SECTIONS, OPTIONAL_SECTIONS, ROOT, SECTIONS, keys_of, scalar_keys
from loader.schema.process_arguments import ProcessArguments
from loader.sources.config_tree import (
    CLI,
    DEFAULT,
    MISSING,
    SET,
    Node,
    at_path,
    display_path,
    merge,
    name_missing,
    node_of,
    parse_yaml,
    read_scalar,
    read_yaml,
)
from loader.sources.translate_aliases import translate_aliases
from storage.suggestions import did_you_mean, nearest

DEFAULT_FILE = ROOT / "configs" / "training" / "default.yaml"

# Keys of `optimizer` that are the same settings as top-level keys: each layer is rewritten to the latter on reading.
OPTIMIZER_KEYS = {
    "lr": "learning_rate",
    "weight_decay": "weight_decay",
    "eps": "adam_epsilon",
    "name": "optim",
}
# Hydra's groups whose named sets are files of their own; the others name sets of our sections.
NAMED_BUILDERS = ("dataloader_builder", "train_builder")
BUILDERS = (*NAMED_BUILDERS, "model_builder", "optimizer_builder", "scheduler_builder")
# Common names of optimizers.
OPTIMIZER_SYNONYMS = {"adamw": "adamw_torch_fused", "adam": "Adam"}


def find_file(kind: str, name: str, place: str = "") -> Path:
    """Find the YAML file `name` in configs/<kind>/ (of the working folder, then Keel's own), or at that path.

    Raises:
        ConfigError: there is none; names the nearest.
    """
    if not name.strip():
        raise ConfigError(f"the name of a {kind} file{place} is empty")
    path, remedy = Path(os.path.expanduser(name)), ""
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        for candidate in (path, ROOT / path):
            if candidate.exists():
                return candidate
        other = path.with_suffix(".yml" if path.suffix == ".yaml" else ".yaml")
        remedy = f"; did you mean `{display_path(other)}`?" if other.is_file() else ""
        if len(path.parts) > 1:
            raise ConfigError(f"configuration file {display_path(path)}{place} does not exist{remedy}")
    folders = [Path("configs") / kind, ROOT / "configs" / kind]
    for folder in folders:
        candidate = folder / f"{path.stem if path.suffix in ('.yaml', '.yml') else name}.yaml"
        if candidate.is_file():
            return candidate
    if path.suffix:
        raise ConfigError(f"configuration file {name}{place} does not exist, nor in configs/{kind}/{remedy}")
    known = sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
    remedy = did_you_mean(name, known, f"; there are: {quoted(known)}" if known else "; there are none")
    raise ConfigError(f"`{name}`{place}: no such {kind} in configs/{kind}/{remedy}")


def built_in_layer(**others: Any) -> Node:
    """Return the lowest layer: the defaults of hyper and process keys, or the values in `others`."""
    keys = {**keys_of(HyperArguments), **keys_of(ProcessArguments)}
    return node_of({name: key.default for name, key in keys.items()} | others, DEFAULT)


def training_layers(path: str | os.PathLike, problems: Problems) -> list[Node]:
    """Read a training file and everything that it extends, the most distant ancestor first."""
    return [_prepared(layer, problems) for layer in _chain(Path(path), [])]


def text_layer(path: str | os.PathLike, text: str, problems: Problems) -> Node:
    """Return the layer of a file that extends no other, from its text."""
    return _prepared(_without_blanks(parse_yaml(text, display_path(path))), problems)


def file_layer(kind: str, path: Path, problems: Problems, is_named: bool = False) -> Node:
    """Read a task or model file; keys that belong in another kind of file are problems.

    Args:
        is_named: The model is named elsewhere; a model file without a section `model` then has its arguments alone.
    """
    tree = _without_blanks(read_yaml(path))
    allowed = FILE_SECTIONS[kind]
    if kind == "model" and is_named and "model" not in tree.value:
        tree = Node({"model": tree}, tree.origin)
    for key, node in list(tree.value.items()):
        if key in allowed:
            continue
        belongs = "a training file (configs/training/)" if key in scalar_keys() or key in SECTIONS else None
        where = f"it belongs in {belongs}" if belongs else f"a {kind} file holds {quoted(allowed)}"
        problems.add(f"`{key}`{node.origin.place} cannot stand in a {kind} file; {where}")
        del tree.value[key]
    return _prepared(tree, problems)


def flag_layer(hyper: HyperArguments, aliases: Mapping[str, Any], problems: Problems) -> Node:
    """Return the layer of the given flags, alias flags included."""
    layer = node_of({name: getattr(hyper, name) for name in sorted(hyper.given)}, CLI)
    file = layer.value.pop("training_config", None)
    for name, value in aliases.items():
        path = alias_paths()[name] if name in SECTION_ALIASES else name
        layer = merge(layer, at_path(path, node_of(value, CLI)))
    layer = _prepared(layer, problems)
    return layer if file is None else merge(layer, at_path("training_config", file))


def set_layer(settings: list[str], problems: Problems) -> Node:
    """Return the layer of `--set key.path=value …`; a later setting of the same key wins."""
    layer = Node({}, SET)
    for setting in sorted(settings, key=_set_order):
        path, equals, text = setting.partition("=")
        if not equals or not all(path.split(".")):
            problems.add(f"`--set {setting}` is not of the form key.path=value")
            continue
        try:
            keys = [key.strip() for key in path.split(".")]
            if keys == ["extends"]:
                raise ConfigError("a file is built on with `extends` in the file itself, or --training_config")
            if len(keys) > 20:
                raise ConfigError("no key is that deep")
            # One at a time, so that `--set model=mlp model.hidden_dim=32` first chooses and then overrides.
            layer = merge(layer, _prepared(at_path(".".join(keys), read_scalar(text, SET)), problems))
        except ConfigError as error:
            problems.add(f"`--set {setting}`: {error}")
    return layer


def _set_order(setting: str) -> int:
    """Named sets come before single keys, as in Hydra, and those of sections before those of builder groups."""
    path, _, value = setting.partition("=")
    if value[:1] in ("", "{", "[") or path not in (*SECTIONS, *BUILDERS):
        return 2
    return int(path in BUILDERS)


def _without_blanks(tree: Node) -> Node:
    """Return the tree without keys that have no value: they keep their defaults."""
    kept = {}
    for key, child in tree.value.items():
        if child.value is None and child.text == "":
            continue
        kept[key] = _without_blanks(child) if child.is_mapping else child
    return Node(kept, tree.origin, tree.text, tree.replaces)


def _chain(path: Path, below: list[Path]) -> list[Node]:
    """Read `path` and its ancestors, ancestors first. `below` are the files that extend it, to detect a cycle."""
    shown = [display_path(file) for file in [*below, path]]
    if path.resolve() in [file.resolve() for file in below]:
        raise ConfigError(f"`extends` goes in a circle: {' -> '.join(shown)}")
    tree = _without_blanks(read_yaml(path))
    parents = tree.value.pop("extends", None)
    if parents is None or parents.value is None:
        return [tree]
    names = parents.value if isinstance(parents.value, list) else [parents]
    layers: list[Node] = []
    for name in names:
        if not isinstance(name.value, str):
            raise ConfigError(f"`extends`{parents.origin.place} takes a file name or a list of them")
        places = [folder / os.path.expanduser(name.value) for folder in (path.parent, path.resolve().parent)]
        beside = next(filter(Path.is_file, places), None)  # of a link, also beside the file itself
        layers += _chain(beside or find_file("training", name.value, parents.origin.place), [*below, path])
    return [*layers, tree]


def _prepared(tree: Node, problems: Problems) -> Node:
    """Translate aliases, read named sets, and rewrite settings with several spellings to one."""
    if "training_config" in tree.value:
        place = tree.value.pop("training_config").origin.place
        problems.add(f"`training_config`{place} is a flag; a file builds on another with `extends: FILE`")
    name_missing(tree)
    for group in NAMED_BUILDERS:
        node = tree.value.get(group)
        if node is not None and isinstance(node.value, str) and node.value != MISSING:
            tree.value[group] = _named_set(group, node, problems)
    translate_aliases(tree, problems)
    model = tree.value.get("model")
    if model is not None and isinstance(model.value, str):
        named = tree.value.get("model_config")
        if named is not None and named.value != model.value:
            problems.add(
                f"`model`{model.origin.place} and `model_config`{named.origin.place} name two models; keep one"
            )
        # `model: act` names the network; the last layer that names one wins.
        tree.value["model_config"] = tree.value.pop("model")
    for section in SECTIONS:
        node = tree.value.get(section)
        if node is not None and isinstance(node.value, str):
            is_list = section == "callbacks"  # the import path of one
            tree.value[section] = Node([node], node.origin) if is_list else _named_set(section, node, problems)
    _short_forms(tree, problems)
    _move_optimizer_keys(tree, problems)
    return tree


def _named_set(section: str, node: Node, problems: Problems) -> Node:
    """Replace `optimizer: adafactor` by the mapping in configs/optimizer/adafactor.yaml."""
    try:
        path = find_file(section, node.value, node.origin.place)
    except ConfigError:
        if section == "dataset" and _is_data(node.value):  # as the flag --dataset
            problems.aliases.add(section)
            problems.translated.append(f"{section} ({node.origin}): `{alias_paths()[section]}`: {node.value}")
            return Node({"path": node}, node.origin)
        if section not in FREE_SECTIONS or not node.value.isidentifier():
            raise
        return Node({"name": node}, node.origin, replaces=True)  # no such set: the name of an optimizer or a schedule
    tree = read_yaml(path)
    if list(tree.value) != [section]:
        raise ConfigError(f"{display_path(path)} must hold one mapping, `{section}:`; it holds {quoted(tree.value)}")
    chosen = tree.value[section]
    chosen.replaces = section != "dataset"  # of two sets of one kind of data, the folder of the data stays
    return chosen


def _is_data(name: str) -> bool:
    """Whether a name that is no named set is rather that of data than a misspelt one."""
    known = [file.stem for file in (ROOT / "configs" / "dataset").glob("*.yaml")]
    return bool(name.strip()) and not name.endswith((".yaml", ".yml")) and nearest(name, known) is None


def _short_forms(tree: Node, problems: Problems) -> None:
    """Expand `early_stopping: true` or a patience to a mapping; `false` removes an optional section.

    `logging: null` is no logger, which is a setting of its own, and so is `scheduler: null`, a constant rate; beside a
    named schedule it is one without options.
    """
    node = tree.value.get("early_stopping")
    if node is not None and isinstance(node.value, int) and not isinstance(node.value, bool):
        tree.value["early_stopping"] = Node({"patience": Node(node.value, node.origin)}, node.origin)
    logging = tree.value.get("logging")
    if logging is not None and logging.value is None:
        none = Node(None, logging.origin)
        tree.value["logging"] = Node({"logger_type": none}, logging.origin, replaces=True)
    scheduler = tree.value.get("scheduler")
    name = scheduler.value.get("name") if scheduler is not None and scheduler.is_mapping else scheduler
    if name is not None and name.value is None:
        tree.value.setdefault("lr_scheduler_type", Node("constant", name.origin, "none"))
        tree.value["scheduler"] = scheduler if scheduler.is_mapping else Node({}, name.origin, replaces=True)
    for section in OPTIONAL_SECTIONS:
        node = tree.value.get(section)
        if node is not None and isinstance(node.value, bool):
            if section in ("early_stopping", "ema", "checkpointing", "eval_runner"):
                tree.value[section] = Node({}, node.origin) if node.value else Node(None, node.origin)
            else:
                problems.add(f"`{section}`{node.origin.place} must be a mapping")
                del tree.value[section]


def _move_optimizer_keys(tree: Node, problems: Problems) -> None:
    optimizer, scheduler = (tree.value.get(section) for section in FREE_SECTIONS)
    moves = []
    if optimizer is not None and optimizer.is_mapping:
        moves += [(optimizer, "optimizer", word, home) for word, home in OPTIMIZER_KEYS.items()]
        betas = optimizer.value.get("betas")
        count = len(betas.value) if betas is not None and isinstance(betas.value, list) else 0
        if betas is not None and betas.value is not None and count not in (2, 3):
            problems.add(f"`optimizer.betas`{betas.origin.place} must be a list of two numbers (some take three)")
        elif count == 2:
            del optimizer.value["betas"]
            for home, beta in zip(("adam_beta1", "adam_beta2"), betas.value, strict=True):
                _move(tree, "optimizer.betas", home, beta, problems)
    if scheduler is not None and scheduler.is_mapping:
        moves.append((scheduler, "scheduler", "name", "lr_scheduler_type"))
    for section, name, word, home in moves:
        if word in section.value:
            if word == "lr" and section.value[word].value is None:
                # The optimizer's own rate: `precedence.py` compares it with `learning_rate` of all layers.
                if section.replaces and home in tree.value:
                    del section.value[word]  # a key written beside a named set wins over what the set says
                continue
            node = section.value.pop(word)
            if node.value is not None:
                _move(tree, f"{name}.{word}", home, node, problems)
    optim = tree.value.get("optim")
    if optim is not None and isinstance(optim.value, str) and optim.value in OPTIMIZER_SYNONYMS:
        tree.value["optim"] = Node(OPTIMIZER_SYNONYMS[optim.value], optim.origin)


def _move(tree: Node, spelled: str, home: str, node: Node, problems: Problems) -> None:
    if home in tree.value:
        if tree.value[spelled.split(".")[0]].replaces:
            return  # a key written beside a named set wins over what the set says
        other = tree.value[home].origin
        problems.add(f"`{spelled}`{node.origin.place} and `{home}`{other.place} are the same setting; keep one")
        return
    tree.value[home] = node
