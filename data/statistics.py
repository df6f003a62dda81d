"""Compute statistics of a signal, and the per-dimension affine map made from them.

Shapes: N steps, D dimensions of one signal (state or action). Everything is float64 until the last cast.
"""

from dataclasses import dataclass

import numpy as np

KINDS = ("zscore", "min_max", "percentiles", "identity")
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
            raise ValueError(
                f"normalization mask has {len(mask)} entries but the signal has {dimensions} "
                f"dimensions; give one true or false for each of the {dimensions}"
            )
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
        damaged = f"{place} of the saved statistics is damaged"
        remedy = "restore the file from the training run, or train again"
        wanted = {"kind", "mask", "minimum_std", *FIELDS}
        if not isinstance(saved, dict) or not wanted <= saved.keys():
            missing = sorted(wanted - saved.keys()) if isinstance(saved, dict) else "everything"
            raise ValueError(f"{damaged}: {missing} missing; {remedy}")
        if saved["kind"] not in KINDS:
            raise ValueError(f"{damaged}: unknown kind {saved['kind']!r}; {remedy}")
        try:
            statistics = {name: np.asarray(saved[name], dtype=np.float64) for name in FIELDS}
            minimum_std = float(saved["minimum_std"])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{damaged}: {error}; {remedy}") from None
        shapes = {values.shape for values in statistics.values()} | {np.shape(saved["mask"])}
        if len(shapes) != 1 or len(shapes.pop()) != 1:
            raise ValueError(f"{damaged}: its lists differ in length; {remedy}")
        if not all(np.isfinite(values).all() for values in (*statistics.values(), minimum_std)):
            raise ValueError(f"{damaged}: it holds NaN or infinity; {remedy}")
        if minimum_std <= 0 or not all(isinstance(entry, bool) for entry in saved["mask"]):
            raise ValueError(f"{damaged}: minimum_std must be positive and mask true or false; {remedy}")
        return cls.from_statistics(statistics, saved["kind"], saved["mask"], minimum_std)


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
    else:
        assert kind == "min_max", kind
    return low / 2 + high / 2, np.where(is_constant(low, high), 1.0, high / 2 - low / 2)


def is_constant(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return (D,) bool: whether the range is only rounding."""
    return high - low <= CONSTANT_RANGE * np.maximum(1.0, np.maximum(np.abs(low), np.abs(high)))
