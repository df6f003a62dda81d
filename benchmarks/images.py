"""Images a second from the decoded cache against opening, decoding and resizing each one.

    python benchmarks/images.py

JPEG files of 512×384 pixels, trained on at 224×224. Prints one JSON line: images/s of both and their ratio.
"""

from __future__ import annotations

import csv
import json
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data.images import Config, build
from data.images.dataset import Collate

IMAGES, SIZE, BATCH, ROUNDS = 400, 224, 64, 5


def write_images(folder: Path) -> Path:
    generator = np.random.default_rng(0)
    rows = [["local_path", "a", "b"]]
    for index in range(IMAGES):
        small = Image.fromarray(generator.integers(0, 255, (48, 64, 3), np.uint8))
        small.resize((512, 384)).save(folder / f"{index}.jpg", quality=90)
        rows.append([f"{index}.jpg", index % 2, 1])
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder / "labels.csv"


def plain(folder: Path, indices: list[int]) -> np.ndarray:
    """What a data set without a cache does: open, decode, resize, one image after the other."""
    images = [Image.open(folder / f"{index}.jpg").convert("RGB").resize((SIZE, SIZE)) for index in indices]
    return np.stack([np.asarray(image) for image in images]).transpose(0, 3, 1, 2)


def rate(fetch, batches: list[list[int]]) -> float:
    begin = time.perf_counter()
    for indices in batches:
        fetch(indices)
    return sum(map(len, batches)) / (time.perf_counter() - begin)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = Config(path=str(write_images(folder)), image_size=SIZE, eval_fraction=0.0)
        process = SimpleNamespace(model_name_or_path=None, cache_dir=None, trust_remote_code=False)
        bundle = build(config, SimpleNamespace(seed=0, cache_dir=folder / "cache", process=process))
        collate = Collate((0.5,) * 3, (0.25,) * 3)
        order = np.random.default_rng(1).permutation(IMAGES)
        batches = [order[first : first + BATCH].tolist() for first in range(0, IMAGES - BATCH + 1, BATCH)]
        labels = np.zeros((BATCH, 2), np.float32)
        cached = [rate(lambda rows: collate(bundle.train_dataset.__getitems__(rows)), batches) for _ in range(ROUNDS)]
        opened = [rate(lambda rows: collate((plain(folder, rows), labels)), batches) for _ in range(ROUNDS)]
    ours, theirs = float(np.median(cached)), float(np.median(opened))
    figures = {"cached_per_s": round(ours), "decoded_per_s": round(theirs), "ratio": round(ours / theirs, 2)}
    print(json.dumps({"benchmark": "images", **figures}))


if __name__ == "__main__":
    main()
