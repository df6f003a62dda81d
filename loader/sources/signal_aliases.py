"""Aliases of brain_gen's training files: models, losses, loaders and splits of signals, by the names that it has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loader.errors import ConfigError, quoted
from loader.schema.keys import shipped
from loader.sources.config_tree import Node, node_of
from storage.suggestions import did_you_mean

Assignments = list[tuple[str, Node]]  # our key, its value

CLASSIFIERS = ("ClassifierContinuous", "ClassifierQuantized")
STREAMS, FLATTENED = ({"name": "signal_gpt", "layout": layout} for layout in ("streams", "flattened"))
MODELS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("FlatGPT", "FlatGPTRVQ"), FLATTENED),
    **dict.fromkeys(("STGPT2MEG", "GPT2MEG"), STREAMS),
    **dict.fromkeys(("Wavenet", "WavenetFullChannel"), {"name": "wavenet"}),
    **dict.fromkeys(CLASSIFIERS, {"name": "signal_classifier"}),
}
LOSSES = {
    **dict.fromkeys(("CrossEntropy", "CrossEntropyLoss"), "cross_entropy"),
    **dict.fromkeys(("MSE", "MSELoss"), "mse"),
    **dict.fromkeys(("GaussianNLL", "GaussianNLLLoss"), "gaussian_nll"),
}
# Class of a loader -> its keys and ours.
LOADERS: dict[str, dict[str, str]] = {
    "DataLoader": {},
    "MixupDataLoader": {
        name: f"dataset.mixup.{name}"
        for name in ("mixup_alpha", "mixup_prob", "num_classes", "quantize", "mu", "max_val")
    },
    "TextDataLoader": {name: f"dataset.{name}" for name in ("tokenizer_path", "max_length", "use_separator")},
}
SPLITTER = {
    "dataset_root": "dataset.path",
    "example_seconds": "dataset.window",
    "overlap_seconds": "dataset.overlap",
    "val_ratio": "dataset.datasplitter.eval_fraction",
    "test_ratio": "dataset.datasplitter.test_fraction",
    "split_strategy": "dataset.datasplitter.by",
    "cache_dir": "cache_dir",
}
TARGETS = {"ChunkDataset": "tokens", "ChunkDatasetForecastCont": "values", "BPEDataset": "text"}  # of a dataset_class
DATASET_KWARGS = {"fill_value": "dataset.fill_value", "group_size": "dataset.group"}


def model_name(node: Node) -> Assignments:
    """A network by its class there, or by its name here; a classifier is for classes."""
    if node.value is None:
        return []
    name = _name(node)
    target = [("dataset.target", node_of("class", node.origin))] if name in CLASSIFIERS else []
    keys = {"name": name} if name in shipped("model") else _known(name, MODELS, shipped("model"))
    return [("model", node_of(keys, node.origin)), *target]


def loss_name(node: Node) -> Assignments:
    """A loss by its class there, or by its name here; the section `loss` has its arguments."""
    if node.value is None:
        return []
    name = _name(node)
    name = name if name in shipped("loss") else _known(name, LOSSES, shipped("loss"))
    return [("loss", node_of({"name": name}, node.origin))]


def _name(node: Node) -> str:
    """The value, which must be text.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(node.value, str):
        raise ConfigError("must be a name")
    return node.value


def _known(name: str, names: Mapping[str, Any], ours: tuple[str, ...]) -> Any:
    """What a name stands for.

    Raises:
        ConfigError: nothing.
    """
    if name in names:
        return names[name]
    raise ConfigError(f"is not available{did_you_mean(name, [*names, *ours])}; there are {quoted([*names, *ours])}")


def dataloader_class(node: Node) -> Assignments:
    """A kind of loader; MixUp's and the text's keys say the rest."""
    if node.value is not None and _name(node) not in LOADERS:
        raise ConfigError(f"is not available{did_you_mean(node.value, LOADERS)}; it may be {quoted(LOADERS)}")
    return [("dataset.target", node_of("text", node.origin))] if node.value == "TextDataLoader" else []


def extras_without_effect(tree: Node) -> list[str]:
    """Problems, one line each: keys of another loader than the one that the same layer names."""
    chosen, section = tree.value.get("dataloader_class"), tree.value.get("dataloader")
    if chosen is None or section is None or not section.is_mapping or str(chosen.value) not in LOADERS:
        return []
    needed = {name: kind for kind, keys in LOADERS.items() for name in keys if kind != chosen.value}
    return [
        f"`dataloader.{name}`{node.origin.place} has no effect with `dataloader_class: {chosen.value}`"
        f"{chosen.origin.place}; it belongs to {needed[name]}"
        for name, node in section.value.items()
        if name in needed and node.value is not None
    ]


def datasplitter(node: Node) -> Assignments:
    """The recordings, their windows and their split; keys of `dataset.datasplitter` may stand here, too."""
    if node.value is None:
        return []
    if not node.is_mapping:
        raise ConfigError("must be a mapping")
    assignments: Assignments = []
    for name, child in node.value.items():
        if name == "dataset_root" and child.is_mapping:
            child = Node(list(child.value.values()), child.origin)
        if name == "dataset_class":
            if str(child.value) not in TARGETS:
                raise ConfigError(f"has `dataset_class: {child.plain()}`; there are {quoted(TARGETS)}")
            assignments.append(("dataset.target", node_of(TARGETS[child.value], child.origin)))
        elif name == "dataset_kwargs":
            assignments += _dataset_kwargs(child)
        elif name == "heldout_dataset":
            assignments += [("dataset.datasplitter.eval", Node([child], child.origin))] if child.value else []
        elif name == "refresh_cache":
            if child.value:
                raise ConfigError("has `refresh_cache`, which is not needed: what has changed is prepared again")
        else:
            assignments.append((SPLITTER.get(name, f"dataset.datasplitter.{name}"), child))
    if "example_seconds" in node.value:
        assignments.append(("dataset.unit", node_of("seconds", node.value["example_seconds"].origin)))
    return assignments


def _dataset_kwargs(node: Node) -> Assignments:
    if node.value is not None and not node.is_mapping:
        raise ConfigError(f"has `dataset_kwargs: {node.plain()}`, which must be a mapping")
    given = node.value.items() if node.is_mapping else ()
    unknown = [name for name, child in given if name not in DATASET_KWARGS and child.value]
    if unknown:
        raise ConfigError(f"has no `dataset_kwargs.{unknown[0]}`; there are {quoted(DATASET_KWARGS)}")
    return [(DATASET_KWARGS[name], child) for name, child in given if name in DATASET_KWARGS]
