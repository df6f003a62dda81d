"""A folder laid out as LADI's, with small synthetic images, and a tiny pretrained network for them."""

import csv

import numpy as np
from PIL import Image

V2 = (
    "bridges_any", "bridges_damage", "buildings_affected", "buildings_any", "buildings_destroyed", "buildings_major",
    "buildings_minor", "debris_any", "flooding_any", "flooding_structures", "roads_any", "roads_damage", "trees_any",
    "trees_damage", "water_any",
)  # fmt: skip
V2A = (
    "bridges_any", "buildings_any", "buildings_affected_or_greater", "buildings_minor_or_greater", "debris_any",
    "flooding_any", "flooding_structures", "roads_any", "roads_damage", "trees_any", "trees_damage", "water_any",
)  # fmt: skip
DAMAGE, INFRASTRUCTURE = ("flood", "rubble", "misc_damage"), ("building", "road")
COUNTS = {"train": 20, "val": 8, "test": 12}
SIZE = 32


def write_ladi(base):
    """Write all tables and their images below a folder; returns it."""
    for version, labels in (("v2", V2), ("v2a", V2A)):
        for suffix in ("", "_resized"):
            rows = {split: _rows(f"v2/images{suffix}", split, labels) for split in COUNTS}
            for split, name in (("train", "train"), ("val", "val"), ("test", "test")):
                _write(base / "v2" / f"ladi_{version}_labels_{name}{suffix}.csv", labels, rows[split], ",")
            both = rows["train"] + rows["val"]
            _write(base / "v2" / f"ladi_{version}_labels_train_full{suffix}.csv", labels, both, ",")
    for folder, stem, labels in (
        ("damage_dataset", "damage_df", DAMAGE),
        ("infra_dataset", "infra_df", INFRASTRUCTURE),
    ):
        rows = {split: _rows("v1/images", split, labels) for split in ("train", "test")}
        for split, name in (("train", "_train"), ("test", "_test")):
            _write(base / "v1" / folder / f"{stem}{name}.csv", labels, rows[split], "\t")
        _write(base / "v1" / folder / f"{stem}.csv", labels, rows["train"] + rows["test"], "\t")
    images = {line[1] for path in base.rglob("*.csv") for line in _lines(path)[1:]}
    for number, image in enumerate(sorted(images)):
        (base / image).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
        Image.fromarray(pixels).save(base / image)
    return base


def _rows(folder, split, labels):
    """Rows of url, path and labels; label i is there in every (i + 2)th image."""
    return [
        [f"http://x/{split}/{number}", f"{folder}/{split}-{number}.png"]
        + [int(number % (label + 2) == 0) for label in range(len(labels))]
        for number in range(COUNTS[split])
    ]


def _write(path, labels, rows, delimiter):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([["url", "local_path", *labels], *rows])


def _lines(path):
    delimiter = "\t" if path.parent.parent.name == "v1" else ","
    with path.open(newline="") as file:
        return list(csv.reader(file, delimiter=delimiter))


def write_network(folder):
    """Save a ViT of a few thousand parameters, with the preprocessing of its images; returns the folder."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=SIZE,
        patch_size=16, num_labels=3,
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    return folder
