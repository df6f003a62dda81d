"""Tables of images: text with a header, lines of JSON; folders, Parquet files and the hub have modules of their own."""

from __future__ import annotations

import ast
import csv
import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from data.images.config import Config
from data.strict_json import json_lines


@dataclass
class Table:
    """Images of one source with the labels that each has.

    Attributes:
        images: Paths, or for Parquet and hub data (file or data set, row).
        labels: Names of the labels of each image.
        names: All label names, in the order of the source's columns or sorted; in all splits those of training.
        is_multi_label: Whether an image may have any number of labels.
        splits, groups: Of each image, if there is such a column.
        notes: Lines for people.
        declared: Whether the source lists its labels (as columns of 0 and 1, as a ClassLabel); else they are those that
            its images have.
    """

    images: list[Any]
    labels: list[tuple[str, ...]]
    names: list[str]
    is_multi_label: bool
    splits: list[str] | None = None
    groups: list[str] | None = None
    notes: list[str] = field(default_factory=list)
    declared: bool = False

    def part(self, indices: Sequence[int]) -> Table:
        """The images of some rows."""
        images, labels = ([values[index] for index in indices] for values in (self.images, self.labels))
        groups = None if self.groups is None else [self.groups[index] for index in indices]
        return dataclasses.replace(self, images=images, labels=labels, splits=None, groups=groups)


PATH_COLUMNS = ("local_path", "path", "file_path", "filepath", "file_name", "filename", "file", "image_path", "image")
LABEL_COLUMNS = ("label", "labels")  # one that holds a class, or several labels, if the keys of the data name none
NO_LABELS = {*PATH_COLUMNS, "url", "id", "image_id", "split"}
EXTENSIONS = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".jp2"}
EXTENSIONS |= {".ppm", ".pgm", ".pbm", ".pnm"}
DELIMITERS = ",\t;|"
ONE, ZERO = {"1", "1.0", "true", "True", "TRUE"}, {"0", "0.0", "false", "False", "FALSE"}
SPLITS = {"train": "train", "training": "train", "test": "test"}
SPLITS |= dict.fromkeys(("val", "valid", "validation", "dev"), "val")


def read_csv(path: Path, config: Config, key: str, is_metadata: bool = False) -> Table:
    """A table with a header between commas, tabs, semicolons or bars, whatever the file is called; or lines of JSON.

    Columns without a name are left out. If the keys of the data name no labels, they are the columns of 0 and 1, or,
    where there are none, one of `LABEL_COLUMNS`.

    Args:
        is_metadata: One of `LABEL_COLUMNS` comes before the columns of 0 and 1.

    Raises:
        ValueError: a column or a value is not what it must be; names file and line.
    """
    rows = _json_rows(path) if path.suffix == ".jsonl" else _rows(path)
    if len(rows) < 2:
        raise ValueError(f"`{key}: {path}` has no rows below its header")
    header, rows = [name.strip() for name in rows[0][1]], rows[1:]
    doubled = [name for name, count in Counter(header).items() if name and count > 1]
    if doubled:
        raise ValueError(f"{path}:1: column {doubled[0]!r} is there twice")
    for line, values in rows:
        if len(values) != len(header):
            raise ValueError(f"{path}:{line}: {len(values)} values for {len(header)} columns")
    columns = {name: [values[index] for _, values in rows] for index, name in enumerate(header) if name}
    lines = [line for line, _ in rows]
    path_column = column_of(columns, config.path_column, PATH_COLUMNS, path, "path_column")
    if config.labels is None and config.label_column is None:
        usual = next((name for name in LABEL_COLUMNS if name in columns), None)
        if is_metadata or not _columns_of_0_and_1(columns, config, path_column):
            config = dataclasses.replace(config, label_column=usual)
    root = Path(config.root).expanduser() if config.root is not None else path.parent
    images = [root / value for value in columns[path_column]]
    seen: dict[Path, int] = {}
    for image, line in zip(images, lines, strict=True):
        if seen.setdefault(image, line) != line:
            raise ValueError(f"{path}:{line}: {image} is in line {seen[image]} already; an image has one row")
    labels, names, is_multi_label, notes = _labels(columns, config, path, lines, path_column)
    splits = _splits(columns, config, path, lines)
    groups = None
    if config.group_column is not None:
        groups = columns[column_of(columns, config.group_column, (), path, "group_column")]
    return Table(images, labels, names, is_multi_label, splits, groups, notes, declared=config.label_column is None)


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return list(rows_of(file))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def rows_of(file: TextIO) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, values) of each row that is not empty, the header first.

    The delimiter is the one that the first line has most of.

    Args:
        file: Opened with newline="", perhaps a stream that cannot be read twice.

    Raises:
        ValueError: not a table of UTF-8 text.
    """
    try:
        first = file.readline()
        delimiter = max(DELIMITERS, key=first.count)
        reader = csv.reader(itertools.chain([first], file), delimiter=delimiter, skipinitialspace=True)
        for row in reader:
            if any(map(str.strip, row)):
                yield reader.line_num, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"not a table of UTF-8 text ({error})") from None


def _json_rows(path: Path) -> list[tuple[int, list[str]]]:
    """The same of a file with a JSON mapping in each line; a list in it stays a list in JSON."""
    header: dict[str, None] = {}
    lines = []
    with path.open("rb") as file:
        for place, values in json_lines(path, file):
            if not isinstance(values, dict):
                raise ValueError(f"{place}: not a mapping in JSON")
            header |= dict.fromkeys(values)
            lines.append((int(place.rpartition(":")[2]), values))
    text_of = {line: [_as_text(values.get(name)) for name in header] for line, values in lines}
    return [(0, list(header)), *text_of.items()]


def _as_text(value: object) -> str:
    return "" if value is None else json.dumps(value) if isinstance(value, (list, dict)) else str(value)


def column_of(columns: Collection[str], wanted: str | None, usual: Sequence[str], source: object, key: str) -> str:
    """The column that a key names, or the first usual one."""
    for name in [wanted] if wanted is not None else usual:
        if name in columns:
            return name
    known = ", ".join(columns)
    if wanted is not None:
        raise ValueError(f"`dataset.{key}: {wanted}`: {source} has no such column; its columns: {known}")
    raise ValueError(f"{source} has no column {' or '.join(usual)}; name it as dataset.{key}; its columns: {known}")


def _labels(
    columns: dict[str, list[str]], config: Config, path: Path, lines: Sequence[int], path_column: str
) -> tuple[list[tuple[str, ...]], list[str], bool, list[str]]:
    """(labels of each row, label names, whether an image may have several, lines for people)"""
    if config.label_column is not None:
        values = columns[column_of(columns, config.label_column, (), path, "label_column")]
        lists = [_as_list(value) for value in values]
        if config.label_separator is None and not any(lists):
            values = [value.strip() for value in values]
            if "" in values:
                place = f"{path}:{lines[values.index('')]}: column {config.label_column!r}"
                raise ValueError(f"{place} is empty; each image needs its class")
            return [(value,) for value in values], sorted(set(values)), False, []
        rows = [
            tuple(dict.fromkeys(_split(value, config.label_separator) if labels is None else labels))
            for value, labels in zip(values, lists, strict=True)
        ]
        return rows, sorted({label for labels in rows for label in labels}), True, []
    names, notes = config.labels, []
    if names is None:
        names = _columns_of_0_and_1(columns, config, path_column)
        taken = NO_LABELS | {path_column, config.split_column, config.group_column}
        others = [name for name in columns if name not in taken and name not in names]
        notes = [f"{path.name}: columns that are not of 0 and 1 are left out: {', '.join(others)}"] if others else []
        if not names:
            raise ValueError(f"{path} has no column of 0 and 1; name columns by dataset.labels or dataset.label_column")
    for name in names:
        column_of(columns, name, (), path, "labels")
    rows = []
    for index, line in enumerate(lines):
        found = []
        for name in names:
            value = columns[name][index].strip()
            if value not in ONE | ZERO:
                raise ValueError(f"{path}:{line}: column {name!r} is {value!r}; a label is 0 or 1")
            if value in ONE:
                found.append(name)
        rows.append(tuple(found))
    return rows, list(names), True, notes


def _columns_of_0_and_1(columns: dict[str, list[str]], config: Config, path_column: str) -> list[str]:
    """Columns most of whose values are 0 or 1: one with a mistyped value is still a label, and its value an error.

    One of `LABEL_COLUMNS` may number classes: there all values must be so.
    """
    taken = NO_LABELS | {path_column, config.split_column, config.group_column}
    names = []
    for name in (name for name in columns if name not in taken):
        count = sum(value.strip() in ONE | ZERO for value in columns[name])
        if count == len(columns[name]) or (count > 0.5 * len(columns[name]) and name not in LABEL_COLUMNS):
            names.append(name)
    return names


def _as_list(value: str) -> list[str] | None:
    """A list as JSON or Python writes it; None for other text."""
    if not value.lstrip().startswith("["):
        return None
    try:
        return [str(label) for label in ast.literal_eval(value.strip())]
    except (ValueError, SyntaxError):
        return None


def _split(value: str, separator: str | None) -> list[str]:
    """`a|b`; without a separator the whole is one label."""
    parts = [value] if separator is None else value.split(separator)
    return [part.strip() for part in parts if part.strip()]


def _splits(columns: dict[str, list[str]], config: Config, path: Path, lines: Sequence[int]) -> list[str] | None:
    if config.split_column is None:
        return None
    values = columns[column_of(columns, config.split_column, (), path, "split_column")]
    for value, line in zip(values, lines, strict=True):
        if value.strip().lower() not in SPLITS:
            raise ValueError(f"{path}:{line}: column {config.split_column!r} is {value!r}; it says train, val or test")
    return [SPLITS[value.strip().lower()] for value in values]
