"""Tables of images: text with a header, lines of JSON; folders, Parquet files and the hub have modules of their own."""

from __future__ import annotations

import ast
import csv
import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from data.images.config import Config
from data.images.labelled import Table

PATH_COLUMNS = ("local_path", "path", "file_path", "filepath", "file_name", "filename", "file", "image_path", "image")
NO_LABELS = {*PATH_COLUMNS, "url", "id", "image_id", "split"}
EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jp2"}
DELIMITERS = ",\t;|"
ONE, ZERO = {"1", "1.0", "true", "True", "TRUE"}, {"0", "0.0", "false", "False", "FALSE"}
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}


def read_csv(path: Path, config: Config, key: str, usual_labels: Sequence[str] = ()) -> Table:
    """A table with a header between commas, tabs, semicolons or bars, whatever the file is called; or lines of JSON.

    Args:
        usual_labels: Columns of which one holds the labels, if the keys of the data name none.

    Raises:
        ValueError: a column or a value is not what it must be; names file and line.
    """
    rows = _json_rows(path) if path.suffix == ".jsonl" else _rows(path)
    if len(rows) < 2:
        raise ValueError(f"`{key}: {path}` has no rows below its header")
    header, rows = [name.strip() for name in rows[0][1]], rows[1:]
    doubled = [name for name, count in Counter(header).items() if count > 1]
    if doubled:
        raise ValueError(f"{path}:1: column {doubled[0]!r} is there twice")
    for line, values in rows:
        if len(values) != len(header):
            raise ValueError(f"{path}:{line}: {len(values)} values for {len(header)} columns")
    columns = {name: [values[index] for _, values in rows] for index, name in enumerate(header)}
    lines = [line for line, _ in rows]
    if config.labels is None and config.label_column is None:
        usual = next((name for name in usual_labels if name in columns), None)
        config = dataclasses.replace(config, label_column=usual)
    path_column = _column(columns, config.path_column, PATH_COLUMNS, path, "path_column")
    root = Path(config.root).expanduser() if config.root is not None else path.parent
    images = [root / value for value in columns[path_column]]
    _refuse_doubles(images, path, lines)
    labels, names, is_multi_label, notes = _labels(columns, config, path, lines, path_column)
    splits = _splits(columns, config, path, lines)
    groups = None
    if config.group_column is not None:
        groups = columns[_column(columns, config.group_column, (), path, "group_column")]
    return Table(images, labels, names, is_multi_label, splits, groups, notes, declared=config.label_column is None)


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """(line, values) of each row that is not empty."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter_of(first), skipinitialspace=True)
            return [(reader.line_num, row) for row in reader if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a table of UTF-8 text ({error})") from None


def delimiter_of(header: str) -> str:
    """What separates the columns of a table: what its header has most of."""
    return max(DELIMITERS, key=header.count)


def _json_rows(path: Path) -> list[tuple[int, list[str]]]:
    """The same of a file with a JSON mapping in each line; a list in it stays a list in JSON."""
    header: dict[str, None] = {}
    lines = []
    for line, text in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        try:
            values = json.loads(text) if text.strip() else None
        except ValueError as error:
            raise ValueError(f"{path}:{line}: not a mapping in JSON ({error})") from None
        if values is not None:
            if not isinstance(values, dict):
                raise ValueError(f"{path}:{line}: not a mapping in JSON")
            header |= dict.fromkeys(values)
            lines.append((line, values))
    text_of = {line: [_as_text(values.get(name)) for name in header] for line, values in lines}
    return [(0, list(header)), *text_of.items()]


def _as_text(value: object) -> str:
    return "" if value is None else json.dumps(value) if isinstance(value, (list, dict)) else str(value)


def _column(columns: dict[str, list[str]], wanted: str | None, usual: Sequence[str], path: Path, key: str) -> str:
    """The column that a key names, or the first usual one."""
    for name in [wanted] if wanted is not None else usual:
        if name in columns:
            return name
    known = ", ".join(columns)
    if wanted is not None:
        raise ValueError(f"`dataset.{key}: {wanted}`: {path} has no such column; its columns: {known}")
    raise ValueError(
        f"{path} has no column of paths ({', '.join(usual)}); name it as dataset.{key}; its columns: {known}"
    )


def _refuse_doubles(images: Sequence[Path], path: Path, lines: Sequence[int]) -> None:
    seen: dict[Path, int] = {}
    for image, line in zip(images, lines, strict=True):
        if image in seen:
            raise ValueError(f"{path}:{line}: {image} is in line {seen[image]} already; an image has one row")
        seen[image] = line


def _labels(
    columns: dict[str, list[str]], config: Config, path: Path, lines: Sequence[int], path_column: str
) -> tuple[list[tuple[str, ...]], list[str], bool, list[str]]:
    """(labels of each row, label names, whether an image may have several, lines for people)"""
    if config.label_column is not None:
        values = columns[_column(columns, config.label_column, (), path, "label_column")]
        lists = [_as_list(value) for value in values]
        if config.label_separator is None and not any(lists):
            return _classes(values, config.label_column, path, lines)
        rows = [
            tuple(dict.fromkeys(_split(value, config.label_separator) if labels is None else labels))
            for value, labels in zip(values, lists, strict=True)
        ]
        return rows, sorted({label for labels in rows for label in labels}), True, []
    names, notes = config.labels, []
    if names is None:
        taken = NO_LABELS | {path_column, config.split_column, config.group_column}
        names = [name for name in columns if name not in taken and _looks_like_label(columns[name])]
        others = [name for name in columns if name not in taken and name not in names]
        notes = [f"{path.name}: columns that are not of 0 and 1 are left out: {', '.join(others)}"] if others else []
        if not names:
            raise ValueError(
                f"{path} has no column of 0 and 1; name the labels' columns (dataset.labels) or dataset.label_column"
            )
    for name in names:
        _column(columns, name, (), path, "labels")
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


def _looks_like_label(values: Sequence[str]) -> bool:
    """Most values are 0 or 1: a column with a mistyped one is still a label, and its value an error."""
    return sum(value.strip() in ONE | ZERO for value in values) > 0.5 * len(values)


def _classes(
    values: Sequence[str], column: str, path: Path, lines: Sequence[int]
) -> tuple[list[tuple[str, ...]], list[str], bool, list[str]]:
    """As `_labels`, of a column with a class in each row."""
    values = [value.strip() for value in values]
    for value, line in zip(values, lines, strict=True):
        if not value:
            raise ValueError(f"{path}:{line}: column {column!r} is empty; each image needs its class")
    return [(value,) for value in values], sorted(set(values)), False, []


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
    values = columns[_column(columns, config.split_column, (), path, "split_column")]
    for value, line in zip(values, lines, strict=True):
        if value.strip().lower() not in SPLITS:
            raise ValueError(f"{path}:{line}: column {config.split_column!r} is {value!r}; it says train, val or test")
    return [SPLITS[value.strip().lower()] for value in values]
