"""From tables of images to a `Bundle`: splits, labels as numbers, decoded images in a cache."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from data.bundle import Bundle
from data.cache import key_of, open_or_build, require_disk
from data.images.augment import Augment
from data.images.checks import refuse_mixed_classes
from data.images.config import Config
from data.images.dataset import CachedImages, Collate, DecodedImages
from data.images.decode import BadImage, Decoder
from data.images.preprocessing import FILE, Preprocessing, preprocessing_of
from data.images.report import Report
from data.images.splits import read_splits
from data.images.table import Table
from data.samplers import EpochSampler, ShuffledSampler, WeightedSampler
from metrics.classification import MultiLabelMetric, SingleLabelMetric

VERSION = 2  # of what is kept in the cache
SHOWN = 5  # bad images in a message
SET_NAMES = {"val": "validation", "test": "test"}


def assemble(config: Config, run: Any) -> Bundle:
    """See `data.images.build`."""
    tables, notes = read_splits(config, run.seed)
    process = run.process
    preprocessing = preprocessing_of(config, process.model_name_or_path, process.cache_dir)
    names, is_multi_label = tables["train"].names, tables["train"].is_multi_label
    refuse_mixed_classes(config, run, is_multi_label)
    notes, sets, targets = [*notes], {}, {}
    for split, table in tables.items():
        sets[split], more = open_split(config, run, table, preprocessing, f"dataset.{split}")
        targets[split] = sets[split].labels
        notes += more
    metric, classes = (MultiLabelMetric, None) if is_multi_label else (SingleLabelMetric, len(names))
    augment = Augment(config.augmentation, preprocessing.mean, preprocessing.std, classes)
    held_out = {SET_NAMES[split]: sets[split] for split in ("val", "test") if split in sets}
    return Bundle(
        train_dataset=sets["train"],
        eval_datasets={name: dataset for name, dataset in held_out.items() if name == "validation"},
        test_datasets={name: dataset for name, dataset in held_out.items() if name == "test"},
        collate=Collate(preprocessing.mean, preprocessing.std, preprocessing.flips_channels),
        sampler=sampler_of(config, targets["train"]),
        train_transform=augment if config.augment else None,
        dims={
            "num_labels": len(names),
            "labels": names,
            "problem_type": "multi_label_classification" if is_multi_label else "single_label_classification",
            "image_size": preprocessing.size,
            "num_channels": preprocessing.channels,
        },
        metrics={name: metric(names) for name in held_out},
        units={"images": 1},
        files={FILE: preprocessing.as_json(), "data.json": identity(tables, targets, preprocessing)},
        summary=[*notes, *summary(tables, targets)],
        train_metric=metric(names),
        statistics={"samples": len(targets["train"]), "positives": positives(targets["train"], len(names))},
        report=Report(names, is_multi_label),
    )


def open_split(
    config: Config, run: Any, table: Table, preprocessing: Preprocessing, what: str
) -> tuple[CachedImages, list[str]]:
    """(data set, lines for people) of one split, from the cache if the images fit its budget.

    Raises:
        ValueError: images cannot be read, and `on_bad_image` is `error`.
    """
    labels, skip, decoder = target_array(table), config.on_bad_image == "skip", preprocessing.decoder
    needed = len(table.images) * preprocessing.channels * preprocessing.size**2
    if needed > config.cache_gb * 1e9:
        # To leave out all bad ones, each has to be decoded; to refuse a data set, opening its files is enough.
        use = decoder if skip else decoder.check
        bad = bad_images(len(table.images), lambda row: use(table.images[row]), skip)
        kept = [row for row in range(len(table.images)) if row not in bad]
        images = [table.images[row] for row in kept]
        return DecodedImages(images, labels[kept], decoder, os.cpu_count() or 1), skipped_lines(bad, what)
    described = {"version": VERSION, "decoder": vars(decoder), "on_bad_image": config.on_bad_image}
    described["images"] = [image_identity(image) for image in table.images]
    build = functools.partial(decode_all, table=table, decoder=decoder, skip=skip, needed=needed)
    folder, manifest = open_or_build(Path(run.cache_dir) / "images", key_of(described), build)
    kept = manifest["kept"]
    names = [str(table.images[row]) for row in kept]
    return CachedImages(str(folder / "images.npy"), labels[kept], names), skipped_lines(dict(manifest["bad"]), what)


def decode_all(folder: Path, table: Table, decoder: Decoder, skip: bool, needed: int) -> dict[str, Any]:
    """Write all images of a table to images.npy, by as many threads as there are cores; returns the manifest."""
    require_disk(folder, needed, f"a cache of {len(table.images):,} images")
    shape = (len(table.images), decoder.channels, decoder.size, decoder.size)
    array = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=shape)

    def decode(row: int) -> None:
        array[row] = decoder(table.images[row])

    bad = bad_images(len(table.images), decode, skip)
    kept = [row for row in range(len(table.images)) if row not in bad]
    if bad:  # close the gaps
        for place, row in enumerate(kept):
            array[place] = array[row]
    array.flush()
    return {"kept": kept, "bad": list(bad.items())}


def bad_images(total: int, use: Callable[[int], Any], skip: bool) -> dict[int, str]:
    """Row -> reason for images that `use(row)` cannot read, by as many threads as there are cores.

    Raises:
        ValueError: there are some and `skip` is false, or all are bad.
    """

    def reason(row: int) -> str | None:
        try:
            use(row)
        except BadImage as error:
            return str(error)
        return None

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        bad = {row: reason for row, reason in enumerate(pool.map(reason, range(total))) if reason is not None}
    if bad and (not skip or len(bad) == total):
        listed = "; ".join(list(bad.values())[:SHOWN]) + ("; …" if len(bad) > SHOWN else "")
        remedy = "" if skip else "; repair them, or leave them out with dataset.on_bad_image: skip"
        raise ValueError(f"{len(bad)} of {total} images cannot be read: {listed}{remedy}")
    return bad


def skipped_lines(bad: dict[int, str], what: str) -> list[str]:
    if not bad:
        return []
    first = next(iter(bad.values()))
    return [f"{what}: {len(bad)} images that cannot be read are left out; the first: {first}"]


def image_identity(image: Any) -> list[Any]:
    """What tells one image from another: its path, size and time of modification, or its place in a table."""
    if not isinstance(image, Path):
        return [str(image), *image.version]
    try:
        status = image.stat()
    except OSError:
        return [str(image), None]
    return [str(image), status.st_size, status.st_mtime_ns]


def target_array(table: Table) -> np.ndarray:
    """(N, L) float32 of 0 and 1, or (N,) int64."""
    number = {name: index for index, name in enumerate(table.names)}
    if not table.is_multi_label:
        return np.array([number[label] for (label,) in table.labels], dtype=np.int64)
    targets = np.zeros((len(table.labels), len(table.names)), dtype=np.float32)
    for row, labels in enumerate(table.labels):
        targets[row, [number[label] for label in labels]] = 1
    return targets


def positives(targets: np.ndarray, count: int) -> list[int]:
    """Images of each label."""
    if targets.ndim == 1:
        return np.bincount(targets, minlength=count).tolist()
    return targets.sum(0).astype(int).tolist()


def sampler_of(config: Config, targets: np.ndarray) -> Callable[[int], EpochSampler]:
    """Seed -> sampler: every image once an epoch, or images with rare labels more often."""
    if config.sampling == "weighted":
        return functools.partial(WeightedSampler, rarity(targets))
    return functools.partial(ShuffledSampler, len(targets))


def rarity(targets: np.ndarray) -> np.ndarray:
    """Sampling weight of each image: 1 / images of its rarest label."""
    if targets.ndim == 1:
        return 1 / np.bincount(targets)[targets]
    shares = targets / np.maximum(targets.sum(0), 1)
    largest = shares.max(1)
    return np.where(largest > 0, largest, 1 / len(targets))


def identity(tables: dict[str, Table], targets: dict[str, np.ndarray], preprocessing: Preprocessing) -> dict[str, Any]:
    """What tells this data from other: saved with every checkpoint, so that a resumed run can see a change."""
    splits = {name: [len(targets[name]), positives(targets[name], len(table.names))] for name, table in tables.items()}
    train = tables["train"]
    found = {"labels": train.names, "is_multi_label": train.is_multi_label, "splits": splits}
    return {**found, "image_size": preprocessing.size}


def summary(tables: dict[str, Table], targets: dict[str, np.ndarray]) -> list[str]:
    names = tables["train"].names
    counts = ", ".join(f"{len(targets[name]):,} {SET_NAMES.get(name, 'training')}" for name in tables)
    kind = "any number of labels" if tables["train"].is_multi_label else "one class each"
    found = positives(targets["train"], len(names))
    shares = sorted(zip(found, names, strict=True), reverse=True)
    total = max(1, len(targets["train"]))
    listed = ", ".join(f"{name} {count / total:.1%}" for count, name in shares[:20])
    lines = [f"images: {counts}; {len(names)} labels, {kind}: {listed}{', …' if len(names) > 20 else ''}"]
    without = [name for count, name in shares if not count]
    if without:
        lines.append(f"labels that no training image has (their positive weight is 1): {', '.join(without)}")
    return lines
