"""The files that predict.py writes of signals.

Shapes: S forecasts, C channels, k steps.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.processor import Source

EDF_ERROR = 1e-3  # largest error of a value that EDF's integers may make, as a share of the values' range


@dataclass(frozen=True)
class Forecast:
    """What follows a recording, in its file's units: values (S, C, k)."""

    name: str
    channels: list[str]
    rate: float | None
    values: np.ndarray


class Table:
    """A CSV file with a header and rows, written as they come."""

    def __init__(self, target: Path, header: list[str]):
        self.stream = target.open("w", encoding="utf-8", newline="")
        self.rows = csv.writer(self.stream, lineterminator="\n")
        self.rows.writerow(header)

    def drop(self, source: Source) -> None:
        raise AssertionError("recordings stand for themselves")

    def close(self) -> None:
        self.stream.close()


class Classes(Table):
    """Windows with the probability of each class, and the most probable one."""

    def __init__(self, target: Path, classes: list[str]):
        super().__init__(target, ["window", *(f"probability.{name}" for name in classes), "class"])

    def write(self, source: Source, record: list[Any]) -> None:
        self.rows.writerow(record)


class Rows(Table):
    """CSV: a row for each recording, forecast and step; a column for each channel."""

    def __init__(self, target: Path):
        self.target = target

    def write(self, source: Source, record: Forecast) -> None:
        if not hasattr(self, "stream"):
            super().__init__(self.target, ["recording", "sample", "step", *record.channels])
        for number, sample in enumerate(record.values):
            for step, values in enumerate(sample.T, 1):
                self.rows.writerow([record.name, number, step, *(f"{value:.7g}" for value in values)])

    def close(self) -> None:
        if hasattr(self, "stream"):
            super().close()


class Gathered:
    """Keeps the forecasts, and writes them as one file at the end."""

    def __init__(self, target: Path):
        self.target, self.forecasts = target, []

    def write(self, source: Source, record: Forecast) -> None:
        self.forecasts.append((source, record))

    def drop(self, source: Source) -> None:
        raise AssertionError("recordings stand for themselves")

    def close(self) -> None:
        if self.forecasts:
            self.save()

    def save(self) -> None:
        raise NotImplementedError


class Arrays(Gathered):
    """NPZ: an array (S, C, k) for each recording, by its name; `channels` and `sampling_rate` beside them."""

    def save(self) -> None:
        first = self.forecasts[0][1]
        arrays = {record.name: record.values.astype(np.float32) for _, record in self.forecasts}
        more = {} if first.rate is None else {"sampling_rate": np.float64(first.rate)}
        with self.target.open("wb") as stream:
            np.savez_compressed(stream, channels=np.array(first.channels), **more, **arrays)


class Edf(Gathered):
    """EDF: of one recording; a signal for each channel, of several forecasts each with its number behind the name.

    Raises:
        ValueError: there are several recordings, or the rate is not known.
    """

    def save(self) -> None:
        from edfio import Edf as File
        from edfio import EdfSignal

        if len(self.forecasts) > 1:
            raise ValueError("--output: an EDF file holds the forecast of one recording; name a .npz or .csv file")
        _, record = self.forecasts[0]
        if record.rate is None:
            raise ValueError("--output: an EDF file needs a sampling rate, which this recording does not say")
        steps, signals = record.values.shape[-1], {}
        width = 16 if len(record.values) == 1 else 11
        seconds = float(f"{steps / record.rate:.6f}"[:8])  # a header has 8 characters for it
        for number, sample in enumerate(record.values):
            for channel, values in zip(record.channels, sample.astype(np.float64), strict=True):
                label = channel[:width] + ("" if len(record.values) == 1 else f" #{number}")
                try:
                    signals[label] = EdfSignal(values, steps / seconds, label=label)
                    is_exact = np.abs(signals[label].data - values).max() <= EDF_ERROR * np.ptp(values)
                except (ValueError, ZeroDivisionError):
                    is_exact = False
                if not is_exact:
                    raise ValueError(
                        f"--output: an EDF file cannot hold {channel}: its name is not ASCII, or its values or rate "
                        "need more than 8 characters; name a .npz or .csv file"
                    )
        if len(signals) < len(record.values) * len(record.channels):
            raise ValueError(
                f"--output: the names of two channels begin with the same {width} characters; name a .npz or .csv file"
            )
        File(list(signals.values()), data_record_duration=seconds).write(self.target)


WRITERS = {".npz": Arrays, ".csv": Rows, ".edf": Edf}
