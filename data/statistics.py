"""Compute statistics of a signal, and the per-dimension affine map made from them.

Shapes: N steps, D dimensions of one signal (state or action). Everything is float64 until the last cast.
"""

from dataclasses import dataclass

import numpy as np

FIELDS = ("mean", "std", "min", "max", "q01", "q99")
# Below this range, relative to the values' size, what varies is rounding: stretching it to [-1, 1] feeds a
# network noise at full scale.
CONSTANT_RANGE = 1e-6


def compute(values: np.ndarray) -> dict[str, np.ndarray]:
    """Return per-dimension mean, std, min, max, 1 % and 99 % quantiles of values (N, D), each (D,) float64."""
    values = np.asarray(values, dtype=np.float64)
    assert values.ndim == 2 and len(values), f"values of shape {values.shape}, expected (N, D) with N >= 1"
    low, high = values.min(axis=0), values.max(axis=0)
    # The mean of equal numbers can miss them by a rounding error; a constant has to come back exactly.
    mean = np.where(low == high, low, values.mean(axis=0))
    q01, q99 = np.quantile(values, [0.01, 0.99], axis=0)
    return {"mean": mean, "std": values.std(axis=0), "min": low, "max": high, "q01": q01, "q99": q99}


@dataclass(frozen=True)
class Normalizer:
    """encode(x) = (x - shift) / scale, and back; dimensions whose mask is false pass unchanged.

    `zscore` centres on the mean with std floored at `minimum_std`; `min_max` maps [min, max] to [-1, 1];
    `percentiles` maps [q01, q99] to [-1, 1] without clipping what lies outside, so that decoding stays exact
    (a dimension whose quantiles coincide uses min and max instead). A constant dimension encodes to 0 under
    every kind but `identity`, and 0 decodes to its value.
    """

    kind: str
    mask: np.ndarray  # (D,) bool
    minimum_std: float
    statistics: dict[str, np.ndarray]  # each (D,) float64
    shift: np.ndarray  # (D,)
    scale: np.ndarray  # (D,)

    @classmethod
    def fit(cls, values: np.ndarray, kind: str, mask: list[bool] | None, minimum_std: float) -> "Normalizer":
        """Fit to training values (N, D); raise ValueError if the mask has another length than D."""
        return cls.from_statistics(compute(values), kind, mask, minimum_std)

    @classmethod
    def from_statistics(cls, statistics: dict, kind: str, mask: list[bool] | None, minimum_std: float):
        dimensions = len(statistics["mean"])
        if mask is not None and len(mask) != dimensions:
            counts = f"{len(mask)} entries but the signal has {dimensions} dimensions"
            raise ValueError(f"normalization mask has {counts}; give one true or false for each")
        mask = np.ones(dimensions, bool) if mask is None else np.asarray(mask, bool)
        shift, scale = affine(statistics, kind, minimum_std)
        return cls(kind, mask, minimum_std, statistics, np.where(mask, shift, 0.0), np.where(mask, scale, 1.0))

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Map raw (…, D) to normalised (…, D) float32."""
        return ((values - self.shift) / self.scale).astype(np.float32)

    def decode(self, values: np.ndarray) -> np.ndarray:
        """Map normalised (…, D) to raw (…, D) float64."""
        return np.asarray(values, dtype=np.float64) * self.scale + self.shift

    def to_dict(self) -> dict:
        """Return JSON values; floats survive JSON bit for bit."""
        arrays = {name: self.statistics[name].tolist() for name in FIELDS}
        return {"kind": self.kind, "mask": self.mask.tolist(), "minimum_std": self.minimum_std, **arrays}

    @classmethod
    def from_dict(cls, saved: object, place: str) -> "Normalizer":
        """Invert `to_dict`; raise ValueError naming `place` for a damaged entry."""
        try:
            statistics = {name: np.asarray(saved[name], dtype=np.float64) for name in FIELDS}
            if not all(np.isfinite(values).all() for values in statistics.values()):  # no robot should act on these
                raise ValueError("values that are not finite")
            return cls.from_statistics(statistics, saved["kind"], saved["mask"], saved["minimum_std"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{place} in statistics.json is damaged ({error}); restore it from the run") from None


def affine(statistics: dict, kind: str, minimum_std: float) -> tuple[np.ndarray, np.ndarray]:
    """Return (shift, scale) of a kind, each (D,); scale is never 0."""
    if kind == "identity":
        return np.zeros_like(statistics["mean"]), np.ones_like(statistics["mean"])
    if kind == "zscore":
        return statistics["mean"], np.maximum(statistics["std"], minimum_std)
    low, high = statistics["min"], statistics["max"]
    if kind == "percentiles":
        narrow = is_constant(statistics["q01"], statistics["q99"])
        low, high = np.where(narrow, low, statistics["q01"]), np.where(narrow, high, statistics["q99"])
    elif kind != "min_max":
        raise ValueError(f"unknown kind {kind!r}")
    return low / 2 + high / 2, np.where(is_constant(low, high), 1.0, high / 2 - low / 2)


def is_constant(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return (D,) bool: whether the range is only rounding."""
    return high - low <= CONSTANT_RANGE * np.maximum(1.0, np.maximum(np.abs(low), np.abs(high)))
