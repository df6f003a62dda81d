"""Read .ts and .arff files of timeseriesclassification.com (UEA, UCR): labelled trials of equal or other lengths."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from data.signals.recording import Recording, of_array


def read(path: Path, label_column: str | None) -> list[Recording]:
    """See `recording.open_recordings`."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    start = next((number for number, line in enumerate(lines, 1) if line.strip().lower() == "@data"), None)
    if start is None:
        raise ValueError(f"{path.name} has no line @data; it is cut off or of another kind")
    header = " ".join(lines[:start]).lower()
    if "@timestamps true" in header:
        raise ValueError(f"{path.name} has a time for each value (@timeStamps true); write evenly sampled values")
    cases = ts_case if path.suffix.lower() == ".ts" else arff_case
    recordings: list[Recording] = []
    for number, line in enumerate(lines[start:], start + 1):
        if not line.strip() or line.startswith(("#", "%")):
            continue
        try:
            rows, label = cases(line, "@classlabel false" not in header)
            label = None if "@targetlabel true" in header else label  # a number that a regression predicts
            array = np.stack([values_of(row) for row in rows])
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from None
        if recordings and len(array) != (first := len(recordings[0].channels)):
            raise ValueError(f"{path}:{number}: {len(array)} dimensions; the first case has {first}")
        recordings.append(of_array(f"{path.name}#{len(recordings)}", array, label=label))
    return recordings


def ts_case(line: str, is_labelled: bool) -> tuple[list[str], str | None]:
    """`1,2,3:4,5,6:label` -> the text of each dimension, and the label."""
    fields = line.strip().split(":")
    return (fields[:-1], fields[-1].strip()) if is_labelled else (fields, None)


def arff_case(line: str, is_labelled: bool) -> tuple[list[str], str | None]:
    r"""`'1,2,3\n4,5,6',label` (relational), or `1,2,3,label` -> the text of each dimension, and the label."""
    if line.lstrip()[0] in "'\"":
        quote = line.lstrip()[0]
        fields = next(csv.reader([line.strip()], quotechar=quote, skipinitialspace=True))
        return fields[0].split("\\n"), fields[1].strip("'\" ") if is_labelled else None
    values, _, label = line.strip().rpartition(",") if is_labelled else (line.strip(), "", None)
    return [values], label and label.strip("'\" ")


def values_of(row: str) -> np.ndarray:
    """(T,) float64; `?` is NaN."""
    return np.array([np.nan if value.strip() == "?" else float(value) for value in row.split(",")])
