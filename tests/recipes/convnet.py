"""The small convolutional network on images of one class each; group norm, since batch norm depends on the cut."""

import csv

from . import images

MODEL, DATA = "convnet", "images"
LORA = "backbone"


def words(folder):
    words = images.words(folder, model="{name: convnet, widths: [8], stem_stride: 1, norm: group}")
    for split in ("train", "val"):  # the first of the labels that an image has, in a column of its own
        table = folder / split / "labels.csv"
        header, *rows = csv.reader(table.read_text().splitlines())
        with table.open("w", newline="") as file:
            csv.writer(file).writerows([["file", "kind"]] + [[row[0], kind_of(header, row)] for row in rows])
    task = folder / "task.yaml"
    task.write_text(task.read_text().replace("augment: false", "augment: false, label_column: kind"))
    return words


def kind_of(header, row):
    return next((name for name, value in zip(header[1:], row[1:], strict=True) if value == "1"), "none")
