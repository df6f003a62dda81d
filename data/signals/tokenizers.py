"""Values as ids: mu-law, uniform bins, or the codes of a trained network."""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

EDGE = 0.001  # mu-law quantises between -1 and 1 less this, so that 1 falls into the last bin; less of many levels


@dataclass(frozen=True)
class MuLaw:
    """Bins that are finer near 0 (ITU-T G.711, continuous form).

    Args:
        levels: Number of ids.
        max_val: Values beyond it are clipped.
    """

    levels: int = 256
    max_val: float = 5.0

    def encode(self, values: Any) -> Any:
        """Values of any shape -> int64 ids, 0 … levels - 1; of a tensor a tensor on its device."""
        is_tensor = hasattr(values, "device") and not isinstance(values, np.ndarray)
        library = importlib.import_module("torch") if is_tensor else np  # both have these functions
        scaled = library.clip((values if is_tensor else np.asarray(values)) / self.max_val, -1, 1)
        compressed = library.abs(scaled)
        compressed *= self.levels - 1
        library.log1p(compressed, out=compressed)
        compressed /= math.log1p(self.levels - 1)
        library.copysign(compressed, scaled, out=compressed)
        library.clip(compressed, -self._largest, self._largest, out=compressed)
        compressed *= (self.levels - 1) / 2
        compressed += self.levels / 2  # the integer below is the id: none is negative
        return compressed.long() if is_tensor else compressed.astype(np.int64)

    def decode(self, ids: np.ndarray) -> np.ndarray:
        """Ids of any shape -> the values at the middle of their bins, float32."""
        compressed = (np.asarray(ids) + 0.5 - self.levels / 2) / ((self.levels - 1) / 2)
        compressed = np.clip(compressed, -self._largest, self._largest)
        expanded = np.sign(compressed) * np.expm1(np.abs(compressed) * np.log1p(self.levels - 1)) / (self.levels - 1)
        return (expanded * self.max_val).astype(np.float32)

    @property
    def _largest(self) -> float:
        return 1 - min(EDGE, 0.5 / self.levels)

    @property
    def vocab_size(self) -> int:
        return self.levels


@dataclass(frozen=True)
class Uniform:
    """Bins of equal width between -max_val and max_val."""

    levels: int = 256
    max_val: float = 5.0

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Values of any shape -> int64 ids, 0 … levels - 1."""
        places = (np.clip(np.asarray(values) / self.max_val, -1, 1) + 1) / 2 * self.levels
        return np.minimum(places.astype(np.int64), self.levels - 1)

    def decode(self, ids: np.ndarray) -> np.ndarray:
        """Ids of any shape -> the values at the middle of their bins, float32."""
        return (((np.asarray(ids) + 0.5) / self.levels * 2 - 1) * self.max_val).astype(np.float32)

    @property
    def vocab_size(self) -> int:
        return self.levels


TOKENIZERS = {"mu_law": MuLaw, "uniform": Uniform}
