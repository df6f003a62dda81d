"""Which images train, validate and test."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.hub import is_hub_id
from data.images.config import Config
from data.images.folder import read_folder
from data.images.table import Table, read_csv

EVAL_FRACTION = 0.1


def _version_1(folder: str, stem: str) -> dict[str, str | None]:
    table = f"v1/{folder}/{stem}"
    return {"train": f"{table}_train.csv", "val": None, "test": f"{table}_test.csv", "all": f"{table}.csv"}


def _version_2(version: str, suffix: str = "") -> dict[str, str | None]:
    files = {"train": "train", "val": "val", "test": "test", "all": "train_full"}
    return {split: f"v2/ladi_{version}_labels_{file}{suffix}.csv" for split, file in files.items()}


# Set of LADI -> its tables, and its labels where a table has further columns of 0 and 1.
LADI: dict[str, tuple[dict[str, str | None], list[str] | None]] = {
    "v1_damage": (_version_1("damage_dataset", "damage_df"), ["flood", "rubble", "misc_damage"]),
    "v1_infrastructure": (_version_1("infra_dataset", "infra_df"), ["building", "road"]),
    "v2": (_version_2("v2"), None),
    "v2a": (_version_2("v2a"), None),
    "v2_resized": (_version_2("v2", "_resized"), None),
    "v2a_resized": (_version_2("v2a", "_resized"), None),
}


@functools.lru_cache(maxsize=1)  # the check of a run and its data read the same tables
def read_splits(config: Config, seed: int) -> tuple[dict[str, Table], list[str]]:
    """(`train`, and `val` and `test` if there are such images; lines for people)

    Raises:
        ValueError: a source cannot be read, or the splits contradict each other.
    """
    if config.dataset_base_dir is not None:
        return read_ladi(config)
    train = _read(config, "path")
    tables = {"train": train}
    if train.splits is not None:
        rows = np.array(train.splits)
        tables = {name: train.part(np.flatnonzero(rows == name)) for name in ("train", "val", "test") if name in rows}
        if "train" not in tables:
            raise ValueError(f"`dataset.split_column: {config.split_column}`: no row of {config.path} is for training")
    for name, key in (("val", "eval_path"), ("test", "test_path")):
        if getattr(config, key) is not None:
            tables[name] = _read(config, key)
    return draw_splits(tables, config, seed)


def _read(config: Config, key: str) -> Table:
    path = Path(os.path.expanduser(getattr(config, key)))
    if key == "path" and is_hub_id(config.path):
        from data.images.parquet import read_hub

        return read_hub(getattr(config, key), "train", config, None)
    return read_table(path, config, f"dataset.{key}")


def read_table(path: Path, config: Config, key: str = "dataset.path") -> Table:
    """Read a folder, a table or a Parquet file.

    Args:
        key: The key that names it, for messages.

    Raises:
        ValueError: the source is missing, or a column or a value is not what it must be; names file and line.
    """
    if path.is_dir():
        return read_folder(path, config, key)
    if not path.is_file():
        raise ValueError(f"`{key}: {path}` does not exist; name a table of images, or a folder with one per class")
    if path.suffix == ".parquet":
        from data.images.parquet import read_parquet

        return read_parquet(path, config)
    return read_csv(path, config, key)


def draw_splits(tables: dict[str, Table], config: Config, seed: int) -> tuple[dict[str, Table], list[str]]:
    """Hold images out as the fractions say; check that all splits have labels that training knows."""
    notes = list(tables["train"].notes)
    train = tables["train"]
    for name, table in tables.items():
        if not table.images:
            raise ValueError(f"`dataset.path: {config.path}` has no {name} images; name a table or a folder that has")
    if not any(train.labels):
        raise ValueError("no training image has any label: all values are 0")
    if not train.is_multi_label and len(train.names) < 2:
        remedy = "name a folder with a subfolder for each class, or another dataset.label_column"
        raise ValueError(f"`dataset.path: {config.path}`: all images are of one class, {train.names[0]}; {remedy}")
    fractions = {"test": config.test_fraction if "test" not in tables else 0.0}
    fraction = config.eval_fraction
    fractions["val"] = 0.0 if "val" in tables else EVAL_FRACTION if fraction is None else fraction
    for name, share in fractions.items():
        if share:
            kept, held_out = stratified(tables["train"], share, seed + (name == "test"))
            if not len(kept) or not len(held_out):
                count, remedy = len(tables["train"].images), "change dataset.eval_fraction or dataset.test_fraction"
                raise ValueError(f"a share of {share:g} of {count} images leaves none to train or hold out; {remedy}")
            tables[name], tables["train"] = tables["train"].part(held_out), tables["train"].part(kept)
    for name, table in tables.items():
        _agree(name, table, tables["train"])
    return tables, notes


def _agree(name: str, table: Table, train: Table) -> None:
    """Check that a split has the labels of the training split, and give it their order."""
    if table.is_multi_label != train.is_multi_label:
        kind = "lists of labels" if table.is_multi_label else "one class each"
        raise ValueError(f"the {name} images have {kind}, the training images not")
    used, known = ({label for labels in split.labels for label in labels} for split in (table, train))
    unknown = sorted(used - (set(train.names) if train.declared else known))
    if unknown:
        raise ValueError(f"the {name} images have the label {unknown[0]!r}, which no training image has")
    missing = [label for label in train.names if table.declared and train.declared and label not in table.names]
    if missing:
        raise ValueError(f"the {name} images have no column {missing[0]!r}, a label of the training images")
    table.names = train.names if train.declared else sorted(known)


def stratified(table: Table, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows kept, rows held out): about `share` of the images of each label are held out, groups as a whole.

    Labels are served from the rarest to the most frequent (iterative stratification, Sechidis et al. 2011, with two
    parts); the order of images follows from their names and the seed.
    """
    groups = table.groups or names_of(table.images)
    units: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        units.setdefault(group, []).append(row)
    order = sorted(units, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    labels_of = {name: {label for row in units[name] for label in table.labels[row]} for name in order}
    units_with: dict[str, list[str]] = {label: [] for label in table.names}
    for name in order:
        for label in labels_of[name]:
            units_with[label].append(name)
    counts = {label: len(names) for label, names in units_with.items()}
    waiting, held_out = dict.fromkeys(order), set()
    wanted = {label: share * count for label, count in counts.items()}
    for label in sorted(counts, key=lambda name: (counts[name], name)):
        for name in [name for name in units_with[label] if name in waiting]:
            del waiting[name]
            if wanted[label] >= 0.5:
                held_out.add(name)
                for other in labels_of[name]:
                    wanted[other] -= 1
    rest = list(waiting)
    held_out |= set(rest[: round(share * len(rest))])
    rows = np.array(sorted(row for name in held_out for row in units[name]), dtype=np.int64)
    kept = np.setdiff1d(np.arange(len(table.images)), rows)
    return kept, rows


def names_of(images: Sequence[Any]) -> list[str]:
    """Names of images that stay the same when their folder is moved, or is written in another way."""
    names = [str(image) for image in images]
    shared = os.path.commonprefix(names).rfind("/") + 1
    return [name[shared:] for name in names]


def read_ladi(config: Config) -> tuple[dict[str, Table], list[str]]:
    """LADI's tables below `dataset_base_dir`, such as v2/ladi_v2a_labels_train_resized.csv.

    Version 1 has no validation set of its own: images of the training set are held out. `train_split: all` reads the
    tables of everything, and validates on images that are trained on.

    Raises:
        ValueError: an unknown set, or a table is missing.
    """
    base, name = Path(config.dataset_base_dir).expanduser(), config.dataset_config_name or "v2_resized"
    if name not in LADI:
        raise ValueError(f"`dataset.dataset_config_name: {name}` is not one of {', '.join(LADI)}")
    files, labels = LADI[name]
    train = "train" if config.train_split == "train" else "all"
    config = dataclasses.replace(config, root=str(base), labels=config.labels or labels)
    chosen = {"train": files[train], "val": files["val"], "test": files["test"]}
    if train == "all" and chosen["val"] is None:
        chosen["val"] = files["test"]
    tables = {
        split: read_table(base / file, config, "dataset.dataset_base_dir") for split, file in chosen.items() if file
    }
    notes = ["train_split: all: the validation images are trained on too"] if train == "all" else []
    tables, more = draw_splits(tables, config, 0)
    return tables, notes + more
