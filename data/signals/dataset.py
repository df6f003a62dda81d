"""Samples and batches of signals.

Shapes: B samples, C channels, T time steps of a window, n rows of a file.

Batches are described in docs/signals.md, under Batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from data.signals.preparing import Prepared
from data.signals.scaling import Scaling, aligned
from data.signals.splits import Stretch
from data.signals.windows import Trial, Windows

NO_LABEL = -100
BLOCK_ROWS = 2**18  # most that `recordings` yields at once
PADDING = {"labels": NO_LABEL, "channels": -1}  # other entries are padded with 0

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Signals:
    """Standardised rows of prepared files.

    Args:
        columns: For each file, in which columns the C channels are; -1 where it lacks one.
        fill_value: What networks get where a value is missing.
    """

    files: Sequence[Prepared]
    columns: Sequence[np.ndarray]
    scaling: Scaling
    fill_value: float

    def rows(self, file: int, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """(n, C) float32, NaN where missing; written to `out` if there is one."""
        rows = self.files[file].array()[start:stop]
        return self.scaling(rows if self._is_whole[file] else aligned(rows, self.columns[file]), out)

    @cached_property
    def _is_whole(self) -> list[bool]:
        """Whether the C channels are those of a file, in its order."""
        pairs = zip(self.files, self.columns, strict=True)
        return [np.array_equal(columns, np.arange(len(file.channels))) for file, columns in pairs]

    def filled(self, values: np.ndarray) -> np.ndarray:
        """Values (…, T) without NaN."""
        # Where no recording lacks a value, only what is beyond the end of a stretch does, at the end of a window.
        if not self._has_missing and not np.isnan(values[..., -1]).any():
            return values
        return np.where(np.isnan(values), np.float32(self.fill_value), values)

    @cached_property
    def _has_missing(self) -> bool:
        lacks_channels = any((columns < 0).any() for columns in self.columns)
        return lacks_channels or any(any(part.missing) for file in self.files for part in file.parts)


class SignalSet(torch.utils.data.Dataset):
    """A split of recordings.

    Args:
        stretches: Its rows.
        tokenizer: Values <-> ids, if there are any.
    """

    def __init__(self, signals: Signals, stretches: Sequence[Stretch], tokenizer: Any = None):
        self.signals, self.stretches, self.tokenizer = signals, stretches, tokenizer

    def __getitems__(self, numbers: Sequence[int]) -> Batch:
        raise NotImplementedError

    def __getitem__(self, number: int) -> Batch:
        """One sample: the batch of one, without its batch axis."""
        return {key: value[0] for key, value in self.__getitems__([number]).items()}

    def recordings(self) -> Iterator[tuple[str, np.ndarray]]:
        """(name, values (C, n) float32, NaN where missing) of each stretch, long ones in several pieces."""
        for stretch in self.stretches:
            name = self.signals.files[stretch.file].parts[stretch.part].name
            for start in range(stretch.start, stretch.stop, BLOCK_ROWS):
                yield name, self.signals.rows(stretch.file, start, min(start + BLOCK_ROWS, stretch.stop)).T

    def recording_ids(self) -> Iterator[tuple[str, np.ndarray]]:
        """(name, ids (C, n) int64, -1 where missing), as `recordings`."""
        for name, values in self.recordings():
            yield name, np.where(np.isnan(values), -1, self.tokenizer.encode(self.signals.filled(values)))

    def where_is(self, file: int, row: int) -> str:
        """Return `a.edf sample 1234`."""
        part = next(part for part in self.signals.files[file].parts if part.start <= row < part.stop)
        return f"{part.name} sample {row - part.start}"


class NextSet(SignalSet):
    """Windows with the value, or the id, that follows each.

    Args:
        samples: Of an epoch, of random windows, whose numbers go on over the epochs; None: the windows.
        tokenizer: None: values are predicted.
        is_scored: What windows that overlap share is a label in the first alone, so that each counts once, with the
            longest past.
    """

    def __init__(
        self,
        signals: Signals,
        stretches: Sequence[Stretch],
        windows: Windows,
        samples: int | None = None,
        tokenizer: Any = None,
        is_scored: bool = False,
    ):
        super().__init__(signals, stretches, tokenizer)
        self.windows, self.samples, self.is_scored = windows, samples or len(windows), is_scored

    def __len__(self) -> int:
        return self.samples

    def values(self, numbers: Sequence[int]) -> np.ndarray:
        """(B, C, T + 1) float32, NaN where missing or beyond the stretch."""
        length = self.windows.length
        values = np.empty((len(numbers), length + 1, len(self.signals.columns[0])), np.float32)
        for rows, (file, start, end) in zip(values, self.windows(numbers).tolist(), strict=True):
            count = min(length + 1, end - start)
            self.signals.rows(file, start, start + count, out=rows[:count])
            rows[count:] = np.nan
        return values.transpose(0, 2, 1)

    def __getitems__(self, numbers: Sequence[int]) -> Batch:
        """Inputs and labels may be views of one array, whose last axis is the channels: copying would take longer than
        reading."""
        values = self.values(numbers)
        filled, following = self.signals.filled(values), values[..., 1:]
        if self.is_scored:
            shared = self.windows.overlaps(numbers)[:, None, None]
            following = np.where(np.arange(following.shape[-1]) < shared, np.float32(np.nan), following)
        if self.tokenizer is None:
            return self._batch(signal=filled[..., :-1], labels=following)
        ids = np.empty_like(filled, np.int64)  # of the same layout
        for window, of_window in zip(filled, ids, strict=True):
            of_window[:] = self.tokenizer.encode(window)
        labels, missing = ids[..., 1:], np.isnan(following)
        labels = np.where(missing, NO_LABEL, labels) if missing.any() else labels
        return self._batch(input_ids=ids[..., :-1], labels=labels)

    def _batch(self, **arrays: np.ndarray) -> Batch:
        count, channels = next(iter(arrays.values())).shape[:2]
        numbers = torch.arange(channels).expand(count, channels).contiguous()
        return {**{key: torch.from_numpy(value) for key, value in arrays.items()}, "channels": numbers}

    def where(self, number: int) -> str:
        file, start, _ = self.windows([number])[0].tolist()
        return self.where_is(file, start)


class TrialSet(SignalSet):
    """Labelled windows of any length.

    Args:
        labels, groups: Of each trial, (N,) int64.
        quantizer: Tokenizer of the inputs.
    """

    def __init__(
        self,
        signals: Signals,
        stretches: Sequence[Stretch],
        trials: Sequence[Trial],
        labels: np.ndarray,
        groups: np.ndarray,
        quantizer: Any = None,
    ):
        super().__init__(signals, stretches)
        self.trials, self.labels, self.groups, self.quantizer = trials, labels, groups, quantizer

    def __len__(self) -> int:
        return len(self.trials)

    def __getitem__(self, number: int) -> Batch:
        trial = self.trials[number]
        values = self.signals.filled(self.signals.rows(trial.file, trial.start, trial.stop).T)
        values = values if self.quantizer is None else self.quantizer.encode(values)
        return {
            "signal": torch.from_numpy(np.ascontiguousarray(values)),
            "lengths": torch.tensor(values.shape[1]),
            "labels": torch.tensor(int(self.labels[number])),
            "group": torch.tensor(int(self.groups[number])),
            "channels": torch.arange(len(values)),
        }

    def __getitems__(self, numbers: Sequence[int]) -> Batch:
        return collate([self[number] for number in numbers])

    def where(self, number: int) -> str:
        return self.where_is(self.trials[number].file, self.trials[number].start)


def collate(samples: Batch | list[Batch]) -> Batch:
    """A batch as `__getitems__` made it, or one of single samples, padded along the last axis to the longest."""
    if isinstance(samples, dict):
        return samples
    return {key: padded([sample[key] for sample in samples], PADDING.get(key, 0)) for key in samples[0]}


def padded(tensors: list[torch.Tensor], value: float) -> torch.Tensor:
    if tensors[0].ndim == 0:
        return torch.stack(tensors)
    longest = max(tensor.shape[-1] for tensor in tensors)
    return torch.stack(
        [torch.nn.functional.pad(tensor, (0, longest - tensor.shape[-1]), value=value) for tensor in tensors]
    )
