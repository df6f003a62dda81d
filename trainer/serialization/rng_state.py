"""The states of the random number generators that training draws from, as JSON: rng-0.json, one for each process."""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch


def file_name(process: int) -> str:
    return f"rng-{process}.json"


def states() -> dict[str, Any]:
    """Those of Python, numpy, torch and this process's CUDA devices, as JSON values."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    found = {
        "python": [version, list(words), gauss],
        "numpy": [name, keys.tolist(), position, has_gauss, cached],
        "torch": _text(torch.random.get_rng_state()),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found["cuda"] = _text(torch.cuda.get_rng_state())
    return found


def restore(found: dict[str, Any]) -> None:
    """Puts the generators into the states that `states` returned."""
    version, words, gauss = found["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = found["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.random.set_rng_state(_tensor(found["torch"]))
    if "cuda" in found and torch.cuda.is_available():
        torch.cuda.set_rng_state(_tensor(found["cuda"]))


def start(*numbers: int) -> None:
    """Generators as new, from whole numbers ≥ 0: others for any other numbers."""
    # Mixed into 32 bits, because the generators of numpy and of torch's CPU look at no more.
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def read(folder: Path, process: int) -> dict[str, Any] | None:
    """The states of a process in a checkpoint; None: fewer processes trained then.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / file_name(process)
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: found[name] for name in ("python", "numpy", "torch", "cuda") if name in found or name != "cuda"}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}); take another checkpoint") from None


def _text(state: torch.Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode("ascii")


def _tensor(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
