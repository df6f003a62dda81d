"""Signals as the codes of a trained network (`tokenizer: FOLDER`), encoded once into a memory-mapped array.

Shapes: C channels, F frames, Q quantizers; a frame's codes follow one another, code q is `q * levels + id`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data.cache import file_identity, key_of, open_or_build
from data.signals.dataset import Signals
from data.signals.preparing import FILE, Part
from data.signals.scaling import Scaling
from data.signals.splits import Stretch

BLOCK_FRAMES = 4096
CONTEXT_FRAMES = 64  # encoded again before each block: more than a causal convolution of a few layers sees


class Codes:
    """Codes <-> values, for baselines and for writing signals.

    Args:
        network: Has `encode` and `decode` (docs/signals.md, Batches).
    """

    def __init__(self, network: Any):
        self.network = network
        config = network.config
        self.hop, self.quantizers, self.levels = config.hop, config.quantizers, config.levels

    @property
    def vocab_size(self) -> int:
        return self.quantizers * self.levels

    def encode(self, codes: np.ndarray) -> np.ndarray:
        """The rows of the code array are codes already."""
        return codes.astype(np.int64)

    def of_values(self, values: np.ndarray) -> np.ndarray:
        """Values (C, F * hop) float32 without NaN -> codes (C, F, Q) int64."""
        import torch

        with torch.no_grad():
            ids = self.network.encode(torch.from_numpy(np.ascontiguousarray(values)))
        return ids.numpy() + np.arange(self.quantizers) * self.levels

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Codes (C, F * Q) -> values (C, F * hop) float32."""
        import torch

        frames = np.asarray(codes).reshape(len(codes), -1, self.quantizers) % self.levels
        return self.network.decode(torch.from_numpy(frames)).numpy()


def encode(signals: Signals, stretches: Sequence[Stretch], codes: Codes, folder: str, cache: Path) -> Signals:
    """The same files as arrays of codes: `stretch_of_codes` says where a stretch is in them."""
    description = {
        "network": [file_identity(file, file.name) for file in sorted(Path(folder).glob("*.safetensors"))],
        "files": [file.path for file in signals.files],
        "columns": [columns.tolist() for columns in signals.columns],
        "scaling": [signals.scaling.shift.tolist(), signals.scaling.scale.tolist(), signals.scaling.clip],
        "fill_value": signals.fill_value,
        "stretches": [[stretch.file, stretch.start, stretch.stop] for stretch in stretches],
    }
    build = partial(write_codes, signals=signals, stretches=stretches, codes=codes)
    place, manifest = open_or_build(cache, f"codes-{key_of(description)}", build)
    channels = len(signals.columns[0])
    parts = [
        Part(name, start, stop, [[start, stop]], [], missing, [], [], [], None, None, None)
        for name, start, stop, missing in manifest["parts"]
    ]
    file = signals.files[0]
    rate = file.rate and file.rate / codes.hop * codes.quantizers
    names = [f"ch{index}" for index in range(channels)]
    coded = replace(file, path=str(place / FILE), channels=names, rate=rate, rows=parts[-1].stop, parts=parts)
    whole = Scaling(np.zeros(channels), np.ones(channels), None)
    return Signals([coded], [np.arange(channels)], whole, 0.0)


def write_codes(folder: Path, signals: Signals, stretches: Sequence[Stretch], codes: Codes) -> dict[str, Any]:
    """Write (rows, C) float32 codes of all stretches, one after the other; NaN where a sample of a frame is missing."""
    parts, row = [], 0
    with (folder / FILE).open("wb") as stream:
        for stretch in stretches:
            start, missing = row, np.zeros(len(signals.columns[0]), np.int64)
            frames = (stretch.stop - stretch.start) // codes.hop
            for first in range(0, frames, BLOCK_FRAMES):
                block = encoded(signals, stretch, first, min(first + BLOCK_FRAMES, frames), codes)
                stream.write(np.ascontiguousarray(block.T, np.float32).tobytes())
                row += block.shape[1]
                missing += np.isnan(block).sum(1)
            parts.append([signals.files[stretch.file].parts[stretch.part].name, start, row, missing.tolist()])
    return {"parts": parts}


def encoded(signals: Signals, stretch: Stretch, first: int, stop: int, codes: Codes) -> np.ndarray:
    """Codes of frames `first` to `stop` of a stretch, (C, frames * Q) float32."""
    before = min(first, CONTEXT_FRAMES)
    start = stretch.start + (first - before) * codes.hop
    values = signals.rows(stretch.file, start, stretch.start + stop * codes.hop).T
    ids = codes.of_values(signals.filled(values))[:, before:]
    missing = np.isnan(values).reshape(len(values), -1, codes.hop).any(-1)[:, before:, None]
    return np.where(missing, np.nan, ids).reshape(len(values), -1)
