"""Data sets made of Fashion-MNIST, as PNG files with tables: the articles themselves, and 2×2 mosaics of them.

A mosaic of 56×56 pixels shows up to four articles of 28×28; its labels are the classes that are in it. Frequencies are
uneven on purpose: the most frequent class is in a third of the mosaics, the rarest in 3.5 % of them.
"""

from __future__ import annotations

import csv
import gzip
import struct
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

CLASSES = ("tshirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle_boot")
COUNTS = {"train": 8000, "val": 1000, "test": 1000}
SIDE = 28
FREQUENCIES = np.geomspace(0.33, 0.035, len(CLASSES))  # share of the mosaics that a class is in
SEED = 0


def make_articles(folder: Path, source: Path) -> dict:
    """Write the articles with their classes: 55,000 to train, 5,000 to validate, and the 10,000 of the test set.

    Args and errors as `make_mosaics`.
    """
    for split, (images, labels) in read_splits(source, held_out=12).items():
        write_split(folder, split, images, ["article"], ([CLASSES[kind]] for kind in labels))
    return {}


def make_mosaics(folder: Path, source: Path) -> dict:
    """Write train, val and test mosaics and their tables into `folder`; articles of the test set make the test mosaics.

    Args:
        source: Folder with the idx files of Fashion-MNIST (`train-images-idx3-ubyte.gz` …), or its id on the hub.

    Raises:
        ValueError: a file is missing or not in idx format.
    """
    generator = np.random.default_rng(SEED)
    for split, (images, labels) in read_splits(source, held_out=10).items():
        write_mosaics(folder, split, images, labels, COUNTS[split], generator)
    return {}


MAKERS = {"fashion_mosaics": make_mosaics, "fashion_mnist": make_articles}


def read_splits(source: Path, held_out: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Split -> (images, classes); every `held_out`-th training article, in a seeded order, is for validation."""
    images, labels = read_articles(source, "train")
    order = np.random.default_rng(SEED).permutation(len(images))
    cut = len(order) - len(order) // held_out
    return {
        "train": (images[order[:cut]], labels[order[:cut]]),
        "val": (images[order[cut:]], labels[order[cut:]]),
        "test": read_articles(source, "t10k"),
    }


def read_articles(source: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(images (N, 28, 28) uint8, classes (N,) uint8) of `train` or `t10k`, from idx files or a data set of the hub."""
    if not source.is_dir():
        return read_hub_articles(str(source), {"t10k": "test"}.get(name, name))
    images = read_idx(source / f"{name}-images-idx3-ubyte.gz", 3)
    labels = read_idx(source / f"{name}-labels-idx1-ubyte.gz", 1)
    if len(images) != len(labels):
        raise ValueError(f"{source}: {len(images)} images and {len(labels)} labels of {name}")
    return images, labels


def read_hub_articles(name: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """As `read_articles`, of a data set of the hub such as `zalando-datasets/fashion_mnist`."""
    import io

    from PIL import Image

    from data.images.config import Config
    from data.images.parquet import read_hub

    table = read_hub(name, split, Config(), None)
    images = np.stack([np.asarray(Image.open(io.BytesIO(cell.read())).convert("L")) for cell in table.images])
    numbers = {label: number for number, label in enumerate(table.names)}
    return images, np.array([numbers[label] for (label,) in table.labels], np.uint8)


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """An array of bytes in MNIST's idx format: two zero bytes, type 8, the number of dimensions, big-endian sizes."""
    try:
        with gzip.open(path) as file:
            content = file.read()
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if content[:4] != bytes((0, 0, 8, dimensions)):
        raise ValueError(f"{path} is not an idx file of bytes with {dimensions} dimensions")
    shape = struct.unpack(f">{dimensions}I", content[4 : 4 + 4 * dimensions])
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions)
    if len(values) != np.prod(shape):
        raise ValueError(f"{path} holds {len(values)} bytes for the shape {shape}")
    return values.reshape(shape)


def write_mosaics(
    folder: Path, split: str, images: np.ndarray, labels: np.ndarray, count: int, generator: np.random.Generator
) -> None:
    """Mosaics and `labels_<split>.csv` in LADI's layout: local_path, then a column of 0 and 1 for each class."""
    pools = [np.flatnonzero(labels == kind) for kind in range(len(CLASSES))]
    present = draw_labels(count, generator)
    mosaics = np.zeros((count, 2 * SIDE, 2 * SIDE), np.uint8)
    for row, kinds in enumerate(present):
        chosen = np.flatnonzero(kinds)
        for place, kind in zip(generator.permutation(4), chosen, strict=False):
            top, left = (place // 2) * SIDE, (place % 2) * SIDE
            mosaics[row, top : top + SIDE, left : left + SIDE] = images[generator.choice(pools[kind])]
    write_split(folder, split, mosaics, CLASSES, (map(int, kinds) for kinds in present))


def write_split(
    folder: Path, split: str, images: np.ndarray, columns: Sequence[str], labels: Iterable[Iterable[object]]
) -> None:
    """(N, H, W) uint8 -> `split/00000.png` …, and `labels_<split>.csv` with their names and these columns."""
    from PIL import Image

    (folder / split).mkdir(parents=True)
    names = [f"{split}/{row:05d}.png" for row in range(len(images))]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda row: Image.fromarray(images[row]).save(folder / names[row]), range(len(images))))
    with (folder / f"labels_{split}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["local_path", *columns])
        writer.writerows([name, *row] for name, row in zip(names, labels, strict=True))


def draw_labels(count: int, generator: np.random.Generator) -> np.ndarray:
    """(count, classes) bool: independent classes at their frequencies, drawn again where more than four would be in."""
    present = generator.random((count, len(CLASSES))) < FREQUENCIES
    while (crowded := present.sum(1) > 4).any():
        present[crowded] = generator.random((int(crowded.sum()), len(CLASSES))) < FREQUENCIES
    return present
