"""The files that predict.py writes of signals.

Shapes: S forecasts, C channels, k steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.processor import CsvWriter, Source

EDF_ERROR = 1e-3  # largest error of a value that EDF's integers may make, as a share of the values' range


@dataclass(frozen=True)
class Forecast:
    """What follows a recording, in its file's units: values (S, C, k)."""

    name: str
    channels: list[str]
    rate: float | None
    values: np.ndarray


class Rows(CsvWriter):
    """CSV: a row for each recording, forecast and step; a column for each channel."""

    has_header = False

    def write(self, source: Source, record: Forecast) -> None:
        if not self.has_header:
            self.rows.writerow(["recording", "sample", "step", *record.channels])
            self.has_header = True
        for number, sample in enumerate(record.values):
            for step, values in enumerate(sample.T, 1):
                self.rows.writerow([record.name, number, step, *(f"{value:.7g}" for value in values)])


class Gathered:
    """Keeps the forecasts, and writes them as one file at the end."""

    def __init__(self, target: Path):
        self.target, self.forecasts = target, []

    def write(self, source: Source, record: Forecast) -> None:
        self.forecasts.append(record)

    def close(self) -> None:
        if self.forecasts:
            self.save()

    def save(self) -> None:
        raise NotImplementedError


class Arrays(Gathered):
    """NPZ: an array (S, C, k) for each recording, by its name; `channels` and `sampling_rate` beside them."""

    def save(self) -> None:
        first = self.forecasts[0]
        arrays = {record.name: record.values.astype(np.float32) for record in self.forecasts}
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
        record = self.forecasts[0]
        if record.rate is None:
            raise ValueError("--output: an EDF file needs a sampling rate, which this recording does not say")
        steps, signals, is_single = record.values.shape[-1], {}, len(record.values) == 1
        width = 16 if is_single else 11
        seconds = float(f"{steps / record.rate:.6f}"[:8])  # a header has 8 characters for it
        for number, sample in enumerate(record.values):
            for channel, values in zip(record.channels, sample.astype(np.float64), strict=True):
                label = channel[:width] + ("" if is_single else f" #{number}")
                try:
                    signals[label] = EdfSignal(values, steps / seconds, label=label)
                    is_exact = np.abs(signals[label].data - values).max() <= EDF_ERROR * np.ptp(values)
                except (ValueError, ZeroDivisionError):
                    is_exact = False
                if not is_exact:
                    problem = "its name is not ASCII, or its values or rate need more than 8 characters"
                    raise ValueError(f"--output: EDF cannot hold {channel}: {problem}; name a .npz or .csv file")
        if len(signals) < len(record.values) * len(record.channels):
            raise ValueError(f"--output: two channels have the same first {width} letters; name a .npz or .csv file")
        File(list(signals.values()), data_record_duration=seconds).write(self.target)


WRITERS = {".npz": Arrays, ".csv": Rows, ".edf": Edf}
