"""Which windows of the stretches are samples.

Shapes: S stretches, B samples of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.samplers import RandomStarts, spread_stride
from data.signals.preparing import Prepared
from data.signals.splits import Stretch


class Windows:
    """Windows of equal length, within stretches.

    Args:
        length: Rows of a window.
        hop: Rows between the starts of neighbours; 1 for random windows.
        seed: Windows are drawn, window n by (seed, n); None: one after the other, spread over all stretches.
    """

    def __init__(self, stretches: Sequence[Stretch], length: int, hop: int, seed: int | None = None):
        rows = [(stretch.file, stretch.start, stretch.stop) for stretch in stretches]
        self.table = np.array([row for row in rows if row[2] - row[1] >= length], np.int64).reshape(-1, 3)
        self.length, self.hop, self.seed = length, hop, seed
        self.draw = None if seed is None else RandomStarts(seed)
        counts = (self.table[:, 2] - self.table[:, 1] - length) // hop + 1
        self.ends = np.cumsum(counts)
        self.firsts = self.ends - counts
        self.stride = spread_stride(len(self)) if len(self) else 1

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def overlaps(self, numbers: Sequence[int]) -> np.ndarray:
        """(B,) rows at the beginning of each window that the window before has, too; for windows side by side."""
        places = np.array(numbers, np.int64) * self.stride % len(self)
        is_first = places == self.firsts[np.searchsorted(self.ends, places, side="right")]
        return np.where(is_first, 0, self.length - self.hop)

    def __call__(self, numbers: Sequence[int]) -> np.ndarray:
        """(B, 3) int64: file, first row, and the end of its stretch."""
        if self.draw is not None:
            places = self.draw(np.array(numbers, np.uint64), len(self), 0).astype(np.int64)
        else:
            places = np.array(numbers, np.int64) * self.stride % len(self)
        chosen = np.searchsorted(self.ends, places, side="right")
        windows = self.table[chosen]
        windows[:, 1] += (places - self.firsts[chosen]) * self.hop
        return windows


@dataclass(frozen=True)
class Trial(Stretch):
    """A labelled window: rows `start` to `stop` of a file."""

    label: str


def trials_of(
    files: Sequence[Prepared], stretches: Sequence[Stretch], length: int | None, overlap: int, classes: list[str] | None
) -> list[Trial]:
    """The labelled windows of stretches: of labelled recordings; else of their events, which have a class's name.

    Without a length a window is a whole stretch. A window begins with its event, and an event that lasts longer than a
    window has several.
    """
    trials = []
    for stretch in stretches:
        part = files[stretch.file].parts[stretch.part]
        spans = [(stretch.start, stretch.stop, part.label)]
        if part.label is None:
            events = [event for event in part.events if classes is None or event[2] in classes]
            spans = [(row, row + max(rows, length or 0), label) for row, rows, label in events]
        for first, end, label in spans:
            size = length or end - first
            starts = range(first, min(end, stretch.stop) - size + 1, max(1, size - overlap))
            trials += [
                Trial(stretch.file, stretch.part, start, start + size, label)
                for start in starts
                if start >= stretch.start and size
            ]
    return trials
