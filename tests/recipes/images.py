"""Images with any number of labels, and a network of transformers."""

import csv

import numpy as np
from PIL import Image

MODEL, DATA = "auto", "images"
NETWORK = (
    "{name: auto, task: image_classification, config: {model_type: convnextv2, hidden_sizes: [8], depths: [1], "
    "num_stages: 1}}"
)
LABELS = ("red", "green", "blue")


def write_images(folder, count, seed):
    """Squares of noise in which each label's colour is raised; returns the table."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    rows = [["local_path", *LABELS]]
    for index in range(count):
        labels = generator.random(3) < (0.6, 0.4, 0.3)
        pixels = generator.integers(0, 100, (20, 20, 3)) + 120 * labels
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
        rows.append([f"{index}.png", *map(int, labels)])
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder / "labels.csv"


def words(folder, model=NETWORK):
    train, val = write_images(folder / "train", 40, 0), write_images(folder / "val", 11, 1)
    (folder / "task.yaml").write_text(
        f"dataset: {{name: images, path: {train}, eval_path: {val}, image_size: 16, augment: false}}\nmodel: {model}\n"
    )
    (folder / "training.yaml").write_text(f"task_name: {folder / 'task.yaml'}\n")
    return ["--training_config", str(folder / "training.yaml")]


def inputs(folder):
    return folder / "val"
