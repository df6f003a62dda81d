"""Statistics of features as LeRobot stores them, with exact quantiles.

LeRobot itself merges the quantiles of episodes, which is only near the truth; these are of all values.
"""

from __future__ import annotations

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
LEVELS = 256


def of_values(values: np.ndarray) -> dict[str, list]:
    """The statistics of a signal (T, D), each a list of D numbers; `count` is [T]."""
    values = np.asarray(values, np.float64)
    statistics = {"min": values.min(axis=0), "max": values.max(axis=0), "mean": values.mean(axis=0)}
    statistics |= {"std": values.std(axis=0), "count": np.asarray([len(values)])}
    statistics |= dict(zip(QUANTILES, np.quantile(values, list(QUANTILES.values()), axis=0), strict=True))
    return {name: array.tolist() for name, array in statistics.items()}


class PixelCounts:
    """How often each channel has each of the 256 levels: all that exact statistics of a camera need."""

    def __init__(self) -> None:
        self.frames = 0
        self.counts = np.zeros((3, LEVELS), np.int64)

    def add(self, frame: np.ndarray) -> None:
        """Count a frame (H, W, 3) uint8."""
        self.frames += 1
        for channel in range(3):
            self.counts[channel] += np.bincount(frame[..., channel].ravel(), minlength=LEVELS)

    def merge(self, other: PixelCounts) -> None:
        self.frames += other.frames
        self.counts += other.counts

    def statistics(self) -> dict[str, list]:
        """As `of_values`, each of shape (3, 1, 1), for pixels in [0, 1]; `count` is the number of frames."""
        levels, pixels = np.arange(LEVELS) / (LEVELS - 1), self.counts[0].sum()
        mean = self.counts @ levels / pixels
        variance = np.maximum(self.counts @ levels**2 / pixels - mean**2, 0)
        present = self.counts > 0
        low, high = present.argmax(axis=1), LEVELS - 1 - present[:, ::-1].argmax(axis=1)
        statistics = {"min": levels[low], "max": levels[high], "mean": mean, "std": np.sqrt(variance)}
        statistics |= {name: self.quantile(share) / (LEVELS - 1) for name, share in QUANTILES.items()}
        shaped = {name: values.reshape(3, 1, 1).tolist() for name, values in statistics.items()}
        return {**shaped, "count": [self.frames]}

    def quantile(self, share: float) -> np.ndarray:
        """The quantile (3,) of each channel, interpolated linearly between neighbouring values as NumPy does."""
        totals = self.counts.cumsum(axis=1)
        position = share * (totals[0, -1] - 1)
        below, above = (
            np.array([np.searchsorted(total, rank, side="right") for total in totals], float)
            for rank in (np.floor(position), np.ceil(position))
        )
        return below + (above - below) * (position - np.floor(position))
