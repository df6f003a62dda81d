"""States of the random number generators that training draws from, as JSON: rng-0.json, one file for each rank."""

from __future__ import annotations

import base64
import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from storage import safe_read


def file_name(rank: int) -> str:
    """Return the name of a rank's file in a checkpoint."""
    return f"rng-{rank}.json"


def states() -> dict[str, Any]:
    """Return the states of the generators of Python, numpy, torch and this rank's CUDA device, as JSON values."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    generators = {
        "python": [version, list(words), gauss],
        "numpy": [name, keys.tolist(), position, has_gauss, cached],
        "torch": _encode(torch.random.get_rng_state()),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        generators["cuda"] = _encode(torch.cuda.get_rng_state())
    return generators


def restore(generators: dict[str, Any]) -> None:
    """Set the generators to the states that `states` returned."""
    version, words, gauss = generators["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = generators["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.random.set_rng_state(_decode(generators["torch"]))
    if "cuda" in generators and torch.cuda.is_available():
        torch.cuda.set_rng_state(_decode(generators["cuda"]))


@contextlib.contextmanager
def preserved() -> Iterator[None]:
    """Restore the generators to the states before, whatever is drawn inside."""
    before = states()
    try:
        yield
    finally:
        restore(before)


def start(*numbers: int) -> None:
    """Seed the generators from integers ≥ 0; other numbers give other seeds."""
    # Mixed into 32 bits, because the generators of numpy and of torch on the CPU use no more.
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def read(folder: Path, rank: int) -> dict[str, Any] | None:
    """Return the states of a rank in a checkpoint; None: the checkpoint is of fewer ranks."""
    path = folder / file_name(rank)
    return safe_read.read_json(path) if path.is_file() else None


def _encode(state: torch.Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode("ascii")


def _decode(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
