"""Which images train, validate and test."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path

import numpy as np

from data.images.config import Config
from data.images.labelled import Table
from data.images.table import is_hub_id, read_table

EVAL_FRACTION = 0.1
LADI_LABELS = {
    "v1_damage": ("flood", "rubble", "misc_damage"),
    "v1_infrastructure": ("building", "road"),
}


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
            raise ValueError(f"dataset.split_column: no row of {config.path} is for training")
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


def draw_splits(tables: dict[str, Table], config: Config, seed: int) -> tuple[dict[str, Table], list[str]]:
    """Hold images out as the fractions say; check that all splits have labels that training knows."""
    notes = list(tables["train"].notes)
    if not any(tables["train"].labels):
        raise ValueError("no training image has any label: all values are 0")
    fractions = {"test": config.test_fraction if "test" not in tables else 0.0}
    fraction = config.eval_fraction
    fractions["val"] = 0.0 if "val" in tables else EVAL_FRACTION if fraction is None else fraction
    for name, share in fractions.items():
        if share:
            kept, held_out = stratified(tables["train"], share, seed + (name == "test"))
            if not len(kept) or not len(held_out):
                raise ValueError(
                    f"a share of {share:g} of {len(tables['train'].images)} images leaves none to train or to hold out;"
                    " change dataset.eval_fraction or dataset.test_fraction"
                )
            tables[name], tables["train"] = tables["train"].part(held_out), tables["train"].part(kept)
    known = set(tables["train"].names)
    for name, table in tables.items():
        unknown = sorted({label for labels in table.labels for label in labels} - known)
        if unknown:
            raise ValueError(f"the {name} images have the label {unknown[0]!r}, which no training image has")
        if table.is_multi_label != tables["train"].is_multi_label:
            kind = "lists of labels" if table.is_multi_label else "one class each"
            raise ValueError(f"the {name} images have {kind}, the training images not")
    return tables, notes


def stratified(table: Table, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows kept, rows held out): about `share` of the images of each label are held out, groups as a whole.

    Labels are served from the rarest to the most frequent (iterative stratification, Sechidis et al. 2011, with two
    parts); the order of images follows from their names and the seed.
    """
    groups = table.groups or [str(image) for image in table.images]
    units: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        units.setdefault(group, []).append(row)
    order = sorted(units, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    labels_of = {name: {label for row in units[name] for label in table.labels[row]} for name in order}
    counts = {label: sum(label in labels_of[name] for name in order) for label in table.names}
    waiting, held_out = dict.fromkeys(order), set()
    wanted = {label: share * count for label, count in counts.items()}
    for label in sorted(counts, key=lambda name: (counts[name], name)):
        for name in [name for name in waiting if label in labels_of[name]]:
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


def read_ladi(config: Config) -> tuple[dict[str, Table], list[str]]:
    """LADI's tables: `v2/ladi_v2a_labels_train_resized.csv` under `dataset_base_dir`.

    Raises:
        ValueError: an unknown set, or a table is missing.
    """
    base, name = Path(config.dataset_base_dir).expanduser(), config.dataset_config_name or "v2_resized"
    version = name.removesuffix("_resized")
    if version not in ("v1_damage", "v1_infrastructure", "v2", "v2a"):
        raise ValueError(
            f"dataset.dataset_config_name: {name} is not one of v1_damage, v1_infrastructure, v2, v2a, v2_resized, "
            "v2a_resized"
        )
    config = dataclasses.replace(config, root=str(base), labels=list(LADI_LABELS.get(version, ())) or None)
    tables = {}
    for split, file in (
        ("train", "train" if config.train_split == "train" else "train_full"),
        ("val", "val"),
        ("test", "test"),
    ):
        resized = "_resized" if name.endswith("_resized") else ""
        folder, stem = ("v1", f"ladi_{version}") if version.startswith("v1") else ("v2", f"ladi_{version}")
        path = base / folder / f"{stem}_labels_{file}{resized}.csv"
        tables[split] = read_table(path, config, "dataset.dataset_base_dir")
    notes = ["train_split: all: the validation images are trained on too"] if config.train_split == "all" else []
    tables, more = draw_splits(tables, config, 0)
    return tables, notes + more
