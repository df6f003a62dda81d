"""Read .csv, .tsv and .parquet files: a column per channel, a row per sample, and perhaps a column of times.

Columns of text, and columns without a name, are no channels and are left out. A step of time of more than 1.5 samples
is a gap.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data.signals.recording import Event, Recording

TIMES = ("time", "timestamp", "timestamps", "datetime", "date", "t", "seconds")
INDEX = re.compile(r"__index_level_\d+__")  # of pandas, which counts rows
GAP = 1.5  # samples
RATE_DIGITS = 5  # significant ones: times are rounded, often to milliseconds


def read(path: Path, label_column: str | None) -> list[Recording]:
    """See `recording.open_recordings`; `label_column`'s runs of equal values become events."""
    import pyarrow as pa

    schema, rows = open_rows(path, label_column)
    refuse_numbers(schema.names)
    if label_column is not None and label_column not in schema.names:
        raise ValueError(f"no column {label_column} (dataset.label_column); there are {', '.join(schema.names)}")
    times = [field.name for field in schema if pa.types.is_temporal(field.type) or field.name.lower() in TIMES]
    others = (*times, label_column)
    numeric = [field.name for field in schema if pa.types.is_integer(field.type) or pa.types.is_floating(field.type)]
    channels = [name for name in numeric if name and name not in others and not INDEX.fullmatch(name)]
    if not channels:
        raise ValueError(f"no column of numbers beside times and labels; its columns are {', '.join(schema.names)}")
    clock, runs = Clock(), Runs()
    for batch in rows:
        clock.add(seconds_of(batch.column(times[0])) if times else np.empty(0), len(batch))
        if label_column is not None:
            runs.add(batch.column(label_column).to_pylist())
    left_out = [name or "one without a name" for name in schema.names if name not in (*channels, *others)]
    return [
        Recording(
            path.name,
            channels,
            clock.rows,
            Forward(path, channels, label_column),
            rate=clock.rate,
            events=runs.events(clock.rate),
            breaks=clock.breaks,
            notes=[f"{path.name}: columns that are left out: {', '.join(left_out)}"] if left_out else [],
        )
    ]


def refuse_numbers(names: list[str]) -> None:
    """Raise ValueError if the names are a row of values; whole numbers may be names, as pandas writes them."""
    try:
        numbers = [float(name) for name in names]
    except ValueError:
        return
    if numbers and not all(name.isdigit() for name in names):
        raise ValueError(f"its first line has numbers, {', '.join(names[:3])}; write the names of the columns there")


def open_rows(path: Path, label_column: str | None) -> tuple[Any, Iterator[Any]]:
    """(schema, record batches) from a file's start."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pyarrow import csv

    if path.suffix.lower() == ".parquet":
        file = pq.ParquetFile(path)
        return stripped(file.schema_arrow, file.iter_batches())
    parse = csv.ParseOptions(delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    guessed = csv.open_csv(path, parse_options=parse).schema
    # The first block may hold whole numbers, or nothing, only where a later one does not.
    whole = [field.name for field in guessed if pa.types.is_integer(field.type) or pa.types.is_null(field.type)]
    labels = {field.name for field in guessed if field.name.strip() == label_column and pa.types.is_null(field.type)}
    types = {name: pa.string() if name in labels else pa.float64() for name in whole}
    convert = csv.ConvertOptions(column_types=types, strings_can_be_null=True)
    reader = csv.open_csv(path, parse_options=parse, convert_options=convert)
    return stripped(reader.schema, iter(reader))


def stripped(schema: Any, batches: Iterator[Any]) -> tuple[Any, Iterator[Any]]:
    """Both with names without the spaces that some files have after each comma."""
    import pyarrow as pa

    fields = [field.with_name(field.name.strip()) for field in schema]
    names = [field.name for field in fields]
    return pa.schema(fields), (batch.rename_columns(names) for batch in batches)


def seconds_of(column: Any) -> np.ndarray:
    """A column of times, or of seconds, as float64 seconds."""
    import pyarrow as pa

    if pa.types.is_time(column.type):
        column = column.cast(pa.time64("ns")).cast(pa.int64()).cast(pa.duration("ns"))
    values = column.to_numpy(zero_copy_only=False)
    if pa.types.is_temporal(column.type):
        return values.astype(f"{values.dtype.name.partition('[')[0]}[ns]").astype(np.int64) / 1e9
    return values.astype(np.float64)


class Clock:
    """Counts rows and finds gaps in time, a batch after the other.

    Attributes:
        rows: So far.
        breaks: Rows before which there is a gap.
    """

    def __init__(self) -> None:
        self.rows, self.breaks = 0, []
        self.last, self.step, self.elapsed, self.steps = np.nan, np.nan, 0.0, 0

    def add(self, seconds: np.ndarray, rows: int) -> None:
        if len(seconds):
            steps = np.diff(seconds, prepend=self.last)
            if np.isnan(self.step) and rows > 1:
                self.step = float(np.nanmedian(steps))
            if not np.nanmin(steps, initial=np.inf) > 0:
                row = self.rows + int(np.argmax(steps <= 0))
                raise ValueError(f"its times do not grow at row {row + 1}; sort the rows, or leave out the column")
            is_gap = steps > GAP * self.step
            self.breaks += (self.rows + np.flatnonzero(is_gap)).tolist()
            whole = steps[~is_gap & ~np.isnan(steps)]
            self.elapsed, self.steps, self.last = self.elapsed + whole.sum(), self.steps + len(whole), seconds[-1]
        self.rows += rows

    @property
    def rate(self) -> float | None:
        return float(f"{self.steps / self.elapsed:.{RATE_DIGITS}g}") if self.steps else None


class Runs:
    """Runs of equal labels, a batch after the other; an empty value is none."""

    def __init__(self) -> None:
        self.rows, self.runs = 0, []  # (first row, rows, value)

    def add(self, values: list[Any]) -> None:
        for value in values:
            value = (value.strip() or None) if isinstance(value, str) else value
            if self.runs and self.runs[-1][2] == value:
                self.runs[-1][1] += 1
            else:
                self.runs.append([self.rows, 1, value])
            self.rows += 1

    def events(self, rate: float | None) -> list[Event]:
        rate, events = rate or 1.0, []
        for row, rows, value in self.runs:
            if isinstance(value, float) and value.is_integer():
                value = int(value)  # as a CSV file's whole numbers are read
            events += [] if value is None else [Event(row / rate, rows / rate, str(value))]
        return events


class Forward:
    """Reads rows forward: (start, stop) -> (C, n) float64; an earlier start opens the file again."""

    def __init__(self, path: Path, channels: list[str], label_column: str | None):
        self.path, self.channels, self.label_column = path, channels, label_column
        self.first, self.block, self.rows = 0, np.empty((len(channels), 0)), None

    def __call__(self, start: int, stop: int) -> np.ndarray:
        if self.rows is None or start < self.first:
            _, self.rows = open_rows(self.path, self.label_column)
            self.first, self.block = 0, self.block[:, :0]
        while self.first + self.block.shape[1] < stop:
            skipped = min(max(0, start - self.first), self.block.shape[1])
            batch = next(self.rows)
            columns = [batch.column(name).to_numpy(zero_copy_only=False) for name in self.channels]
            self.block = np.concatenate([self.block[:, skipped:], np.array(columns, np.float64)], 1)
            self.first += skipped
        return self.block[:, start - self.first : stop - self.first]
