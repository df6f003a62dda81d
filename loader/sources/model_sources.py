"""Resolve `model_builder`, `base_model_path`, `hf_models_dir` and `finetuned_models_dir` to `model_name_or_path`.

They are written in different layers: a recipe names the model, the command line the folders of this machine.
"""

from __future__ import annotations

import os
from pathlib import Path

from loader.errors import Problems
from loader.sources.config_tree import MISSING, Node, find, missing_line, node_of
from loader.sources.translate_aliases import pop_latest, same_setting

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
    if _problems(key, model, folders, problems):
        return
    named_at = [index for index, layer in enumerate(layers) if "model_name_or_path" in layer.value]
    if named_at and named_at[-1] >= at:  # a later layer names the weights itself
        own = layers[named_at[-1]].value["model_name_or_path"]
        for name, (index, node) in latest.items():
            if node is not None and index >= named_at[-1]:
                problems.add(same_setting(name, node, "model_name_or_path", own))
        return
    source = _source(key, model, folders, problems)
    if source is None:
        return
    layers[at].value["model_name_or_path"] = node_of(source, model.origin)
    problems.note(f"{key} {model.value} ({model.origin}) is `model_name_or_path: {source}`")
    finetuned = folders.get("finetuned_models_dir")
    if finetuned is not None and not any(find(layer, "output_dir") for layer in layers):
        # Another name than the model's, which must mean the same model when the run is resumed.
        folder = os.path.join(finetuned.value, f"{_name(model, source)}-finetuned")
        layers[0].value["output_dir"] = node_of(folder, finetuned.origin)
        problems.note(f"finetuned_models_dir ({finetuned.origin}) holds the run: `output_dir: {folder}`")


def _problems(key: str, model: Node | None, folders: dict[str, Node], problems: Problems) -> bool:
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


def _source(key: str, model: Node, folders: dict[str, Node], problems: Problems) -> str | None:
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


def _name(model: Node, source: str) -> str:
    """Return a model's name without slashes: a folder's own, or the hub's."""
    name = model.value
    return os.path.basename(source.rstrip("/")) if os.path.isdir(os.path.expanduser(name)) else name.replace("/", "-")
