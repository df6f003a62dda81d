"""What can be said about the keys of images before any is decoded; the tables are read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from data.hub import is_hub_id
from data.images.config import Config
from data.images.folder import metadata_of, split_folders
from data.images.splits import read_splits

KEY = re.compile(r"`(dataset\.[\w.]+)[^`]*`")
OF_TABLES = ("root", "path_column", "labels", "label_column", "label_separator", "split_column", "group_column")
# Kind of source -> keys that have no effect on it.
UNREAD = {
    "a folder with a subfolder per class": OF_TABLES,
    "Parquet files and data sets of the hub": tuple(set(OF_TABLES) - {"path_column", "label_column"}),
    "LADI's tables": ("root", "split_column", "eval_path", "test_path", "test_fraction"),
}
FOLDER, PARQUET, LADI = UNREAD


def problems_of(config: Config, run: Any, made: tuple[str, ...]) -> list[str]:
    """Problems, one line each, with the places of the keys.

    Args:
        made: Values of `path` that stand for data sets of prepare.py.
    """
    lines = contradictions(config) or unread(config, run)
    is_read = config.path is None or not (config.path in made or is_hub_id(config.path))
    if is_read and not lines:
        try:
            tables, _ = read_splits(config, run.seed)
            refuse_mixed_classes(config, run, tables["train"].is_multi_label)
        except (ValueError, OSError) as error:
            lines = [str(error)]
    return [KEY.sub(lambda found: found[0] + run.place(found[1]), line, count=1) for line in lines]


def contradictions(config: Config) -> list[str]:
    """Keys that name no images, or two kinds of them."""
    if config.path is not None and config.dataset_base_dir is not None:
        return [f"`dataset.path: {config.path}` and `dataset.dataset_base_dir` both name the images; keep one"]
    if config.path is None and config.dataset_base_dir is None and config.dataset_config_name is not None:
        base = f"the folder of LADI's {config.dataset_config_name}"
        return [f"`dataset.dataset_base_dir` is missing: it is {base}; dataset.path names other images"]
    if config.path is None and config.dataset_base_dir is None:
        return ["`dataset.path` is not set; name a table of images, a folder with a subfolder per class, or a hub id"]
    return []


def unread(config: Config, run: Any) -> list[str]:
    """Keys that a user has set beside data on which they have no effect."""
    kind = kind_of(config)
    reasons = dict.fromkeys(UNREAD.get(kind, ()), f"on {kind}")
    if config.channels == 1:
        reasons |= dict.fromkeys(("augmentation.saturation", "augmentation.hue"), "on gray images (channels: 1)")
    if kind != LADI and config.train_split == "all":
        reasons["train_split"] = f"on {kind}"
    lines = []
    for key, reason in reasons.items():
        section = config.augmentation if "." in key else config
        value = getattr(section, key.rpartition(".")[2])
        source = "dataset.dataset_base_dir" if kind == LADI else "dataset.path"
        if value and run.was_set(f"dataset.{key}") and run.layer_index(f"dataset.{key}") >= run.layer_index(source):
            lines.append(f"`dataset.{key}: {value}` has no effect {reason}; leave it out")
    return lines


def kind_of(config: Config) -> str:
    """A key of `UNREAD`, or another word for a table."""
    if config.dataset_base_dir is not None:
        return LADI
    places = [Path(place).expanduser() for place in (config.path, config.eval_path, config.test_path) if place]
    if is_hub_id(config.path) or all(place.suffix == ".parquet" for place in places):
        return PARQUET
    folders = [part for place in places if place.is_dir() for part in (split_folders(place) or [place])]
    is_folder = all(place.is_dir() for place in places) and all(metadata_of(folder) is None for folder in folders)
    return FOLDER if is_folder else "a table"


def refuse_mixed_classes(config: Config, run: Any, is_multi_label: bool) -> None:
    """Raise ValueError if MixUp or CutMix makes shares of classes, and the network's own loss takes one class."""
    mixed = config.augment and next((name for name in ("mixup", "cutmix") if getattr(config.augmentation, name)), None)
    takes_shares = run.loss is not None or getattr(getattr(run.model, "module", None), "TAKES_SOFT_LABELS", False)
    if mixed and not is_multi_label and not takes_shares:
        value = getattr(config.augmentation, mixed)
        need = "MixUp and CutMix of one class each need loss: {name: cross_entropy}"
        raise ValueError(f"`dataset.augmentation.{mixed}: {value}`: {need}")
