"""Resolve `model_builder`, `base_model_path`, `hf_models_dir` and `finetuned_models_dir` to `model_name_or_path`.

They are written in different layers: a recipe names the model, the command line the folders of this machine.
"""

from __future__ import annotations

import os
from pathlib import Path

from loader.errors import Problems
from loader.sources.config_tree import MISSING, Node, find, missing_line, node_of
from loader.sources.translate_aliases import pop_latest, same_setting

FOLDERS = ("hf_models_dir", "finetuned_models_dir")


def resolve_model_sources(layers: list[Node], problems: Problems) -> None:
    """Replace these aliases by our keys, in place.

    `model_name_or_path` is written into the layer that names the model, so that precedence holds. With
    `finetuned_models_dir`, the run's folder is `MODEL-finetuned` in there, unless `output_dir` is set.
    """
    models = {key: pop_latest(layers, key) for key in ("model_builder", "base_model_path")}
    folders = {key: node for key in FOLDERS if (node := pop_latest(layers, key)[1]) is not None}
    key, (at, model) = max(models.items(), key=lambda item: (item[1][0], item[0] == "base_model_path"))
    if model is None:
        for name, node in folders.items():
            problems.add(f"`{name}`{node.origin.place} needs `model_builder` or `base_model_path`")
        return
    missing = [missing_line(name, node) for name, node in {key: model, **folders}.items() if node.value == MISSING]
    for line in missing:
        problems.add(line)
    if missing:
        return
    own = layers[at].value.get("model_name_or_path")
    if own is not None:
        problems.add(same_setting(key, model, "model_name_or_path", own))
    if any("model_name_or_path" in layer.value for layer in layers[at:]):
        return  # a later layer names the weights itself
    source = _source(key, model, folders, problems)
    if source is None:
        return
    layers[at].value["model_name_or_path"] = node_of(source, model.origin)
    problems.note(f"{key} {model.value} ({model.origin}) is `model_name_or_path: {source}`")
    finetuned = folders.get("finetuned_models_dir")
    if finetuned is not None and not any(find(layer, "output_dir") for layer in layers):
        # Another name than the model's, which must mean the same model when the run is resumed.
        folder = os.path.join(str(finetuned.value), f"{_name(model, source)}-finetuned")
        layers[0].value["output_dir"] = node_of(folder, finetuned.origin)
        problems.note(f"finetuned_models_dir ({finetuned.origin}) holds the run: `output_dir: {folder}`")


def _source(key: str, model: Node, folders: dict[str, Node], problems: Problems) -> str | None:
    """Return the folder or hub id that a name stands for; None after a problem."""
    name = str(model.value)
    if os.path.isdir(os.path.expanduser(name)):
        return name
    hub_id = name.replace("-", "/", 1) if key == "model_builder" and "/" not in name else name
    spellings = (name, hub_id, hub_id.replace("/", "-"))
    candidates = dict.fromkeys(Path(str(node.value), spelling) for node in folders.values() for spelling in spellings)
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


def _name(model: Node, source: str) -> str:
    """Return a model's name without slashes: a folder's own, or the hub's."""
    name = str(model.value)
    return os.path.basename(source.rstrip("/")) if os.path.isdir(os.path.expanduser(name)) else name.replace("/", "-")
