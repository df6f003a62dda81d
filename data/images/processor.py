"""Image files in, a probability and a decision for each label out: a CSV file."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Self

from data import processor
from data.images.config import Config
from data.images.decode import Decoder
from data.images.preprocessing import FILE, Preprocessing
from data.images.table import EXTENSIONS, PATH_COLUMNS
from data.processor import Item, Source
from storage import safe_read

THRESHOLDS = "eval/thresholds.json"  # what eval.py tunes on the validation set
HALF = 0.5
LISTS = (".csv", ".tsv")  # tables of images


class Processor(processor.Processor):
    """Scores images with the preprocessing saved beside the model.

    Inputs: image files, and tables (.csv, .tsv) with a column of paths; of a folder with both, the images.
    Probabilities are sigmoids of several labels an image, softmax of one class each. A label is decided at its
    threshold (`eval/thresholds.json`, else .5), a class by the largest probability.
    """

    SUFFIXES = (*sorted(EXTENSIONS), *LISTS)
    LISTS = LISTS
    TO_STDOUT = True

    def __init__(
        self,
        preprocessing: Preprocessing,
        labels: list[str],
        is_multi_label: bool,
        thresholds: dict[str, float],
        config: Config,
    ):
        self.preprocessing, self.labels, self.is_multi_label = preprocessing, labels, is_multi_label
        self.thresholds, self.config = [thresholds.get(label, HALF) for label in labels], config
        self.decoder = Decoder(preprocessing.size, preprocessing.channels, preprocessing.resize, preprocessing.resample)

    @classmethod
    def from_pretrained(cls, folder: Path, config: Config, process: Any, flags: None = None) -> Self:
        """See `data.processor`."""
        try:
            values, data = (safe_read.read_json(folder / name) for name in (FILE, "data.json"))
            preprocessing = Preprocessing.from_json(values)
            labels, is_multi_label = data["labels"], data["is_multi_label"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{folder}: {FILE} or data.json cannot be read ({error}); restore it from the run"
            ) from None
        places = [folder / THRESHOLDS, folder.parent / THRESHOLDS]
        file = next((place for place in places if place.is_file()), None)
        return cls(preprocessing, labels, is_multi_label, safe_read.read_json(file) if file else {}, config)

    def count(self, source: Source) -> int:
        if not source.name.endswith(LISTS):
            return 1
        with source.open() as stream:
            return max(0, sum(1 for _ in stream) - 1)

    def read(self, source: Source) -> Iterator[Item]:
        """The image itself, or the images that a table lists; paths are relative to `dataset.root` or to the table."""
        if not source.name.endswith(LISTS):
            with source.local_file() as file:
                yield Item(source, str(source), (source.name, file.read_bytes() if source.path is None else file))
            return
        with source.open() as stream:
            text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
            header = text.readline()
            delimiter = max(",\t;", key=header.count)
            columns = next(csv.reader([header], delimiter=delimiter), [])
            wanted = [self.config.path_column] if self.config.path_column else PATH_COLUMNS
            column = next((columns.index(name) for name in wanted if name in columns), None)
            if column is None:
                raise ValueError(f"no column of paths ({', '.join(wanted)}); its columns: {', '.join(columns)}")
            root = Path(self.config.root).expanduser() if self.config.root else Path(source.path or ".").parent
            for number, row in enumerate(csv.reader(text, delimiter=delimiter), 2):
                if row:
                    yield Item(source, f"{source}:{number}", (row[column], root / row[column]))

    def encode(self, raw: tuple[str, Any]) -> tuple[str, Any]:
        """(name, (C, S, S) uint8)"""
        name, image = raw
        return name, self.decoder(image)

    def predict(self, model: Any, inputs: list[tuple[str, Any]]) -> tuple[list[str], Any]:
        """(names, probabilities (B, L) float64)"""
        import numpy as np
        import torch

        from data.images.dataset import Collate

        images = torch.from_numpy(np.stack([image for _, image in inputs]))
        pixels = Collate(self.preprocessing.mean, self.preprocessing.std).normalised(images)
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

    def writer(self, target: Path | BinaryIO) -> Table:
        decisions = [f"decision.{label}" for label in self.labels] if self.is_multi_label else ["decision"]
        return Table(target, ["file", *(f"probability.{label}" for label in self.labels), *decisions])


class Table:
    """Writes rows to a CSV file or stream, below a header."""

    def __init__(self, target: Path | BinaryIO, header: list[str]):
        stream = target.open("wb") if isinstance(target, Path) else target
        self.text = io.TextIOWrapper(stream, encoding="utf-8", newline="", write_through=True)
        self.rows, self.is_file = csv.writer(self.text, lineterminator="\n"), isinstance(target, Path)
        self.rows.writerow(header)

    def write(self, source: Source, record: list[Any]) -> None:
        self.rows.writerow(record)

    def drop(self, source: Source) -> None:
        raise AssertionError("rows stand for themselves")

    def close(self) -> None:
        self.text.flush()
        if self.is_file:
            self.text.close()
        else:
            self.text.detach()
