"""Image files in, a probability and a decision for each label out: a CSV file."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

from data import processor
from data.images.config import Config
from data.images.preprocessing import FILE, Preprocessing
from data.images.report import read_thresholds
from data.images.table import EXTENSIONS, PATH_COLUMNS, column_of, rows_of
from data.processor import CsvWriter, Item, Source, saved_json
from metrics.scores import HALF

THRESHOLDS = "eval/thresholds.json"  # what eval.py tunes on the validation set
LISTS = (".csv", ".tsv")  # tables of images


@dataclass(eq=False)
class Processor(processor.Processor):
    """Scores images with the preprocessing saved beside the model.

    Inputs: image files, and tables (.csv, .tsv) with a column of paths; of a folder with both, the images.
    Probabilities are sigmoids of several labels an image, softmax of one class each. A label is decided at its
    threshold (`eval/thresholds.json`, else .5), a class by the largest probability.
    """

    SUFFIXES = (*sorted(EXTENSIONS), *LISTS)
    LISTS = LISTS
    TO_STDOUT = True

    preprocessing: Preprocessing
    labels: list[str]
    is_multi_label: bool
    thresholds: list[float]
    config: Config

    @classmethod
    def from_pretrained(cls, folder: Path, config: Config, process: Any, flags: None = None) -> Self:
        """See `data.processor`."""
        preprocessing, data = Preprocessing.from_json(saved_json(folder, FILE)), saved_json(folder, "data.json")
        places = [folder / THRESHOLDS, folder.parent / THRESHOLDS]
        file, labels = next((place for place in places if place.is_file()), None), data["labels"]
        thresholds = read_thresholds(file, labels) if file else [HALF] * len(labels)
        return cls(preprocessing, labels, data["is_multi_label"], thresholds, config)

    def count(self, source: Source) -> int:
        if not source.name.lower().endswith(LISTS):
            return 1
        with source.open() as stream:
            return max(0, sum(1 for _ in stream) - 1)

    def read(self, source: Source) -> Iterator[Item]:
        """The image itself, or the images that a table lists.

        Paths are relative to `dataset.root`, to `dataset.dataset_base_dir`, or to the table: the first where a file is.
        """
        if not source.name.lower().endswith(LISTS):
            with source.local_file() as file:
                yield Item(source, str(source), (source.name, file.read_bytes() if source.path is None else file))
            return
        with source.open() as stream:
            text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
            rows = rows_of(text)
            columns = [name.strip() for name in next(rows, (1, []))[1]]
            column = columns.index(column_of(columns, self.config.path_column, PATH_COLUMNS, source, "path_column"))
            roots = [Path(root).expanduser() for root in (self.config.root, self.config.dataset_base_dir) if root]
            roots.append(Path(source.path or ".").parent)
            for line, row in rows:
                name = (row[column] if len(row) == len(columns) else "") or None
                if name is None:
                    image: Any = f"no path in {len(row)} values of {len(columns)} columns"
                else:
                    places = (root / name for root in roots if os.path.exists(root / name))
                    image = next(places, roots[0] / name)
                yield Item(source, f"{source}:{line}", (name, image))

    def encode(self, raw: tuple[str | None, Any]) -> tuple[str, Any]:
        """(name, (C, S, S) uint8)"""
        name, image = raw
        if name is None:
            raise ValueError(image)
        return name, self.preprocessing.decoder(image)

    def predict(self, model: Any, inputs: list[tuple[str, Any]]) -> tuple[list[str], Any]:
        """(names, probabilities (B, L) float64)"""
        import numpy as np
        import torch

        from data.images.dataset import Collate

        images = torch.from_numpy(np.stack([image for _, image in inputs]))
        made = self.preprocessing
        pixels = Collate(made.mean, made.std, made.flips_channels).normalised(images)
        parameter = next(model.parameters())
        with torch.no_grad():
            logits = model(pixel_values=pixels.to(parameter.device, parameter.dtype))["logits"].double().cpu()
        probabilities = logits.sigmoid() if self.is_multi_label else logits.softmax(-1)
        return [name for name, _ in inputs], probabilities.numpy()

    def decode(self, outputs: tuple[list[str], Any]) -> list[list[Any]]:
        """Rows of the table: name, probabilities, decisions."""
        rows = []
        for name, values in zip(*outputs, strict=True):
            if self.is_multi_label:
                decisions = [int(value >= limit) for value, limit in zip(values, self.thresholds, strict=True)]
            else:
                decisions = [self.labels[int(values.argmax())]]
            rows.append([name, *(f"{value:.6f}" for value in values), *decisions])
        return rows

    def writer(self, target: Path | BinaryIO) -> CsvWriter:
        decisions = [f"decision.{label}" for label in self.labels] if self.is_multi_label else ["decision"]
        return CsvWriter(target, ["file", *(f"probability.{label}" for label in self.labels), *decisions])
