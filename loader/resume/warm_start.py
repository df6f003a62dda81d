"""What an earlier run left that another begins from or is compared with: weights, optimizer, its data's facts."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loader.resolve.resolver import read_saved
from loader.resolve.run_config import RunConfig
from loader.resume.find_checkpoint import WEIGHTS, checkpoints, fault
from storage import safe_read

WITHOUT_OPTIMIZER = "begin with a new one: --set load_optimizer=false"


def earlier_folder(run: RunConfig) -> Path:
    """Where the weights of an earlier run lie (`is_pretrained`, `load_pretrain`): in its folder, or, where it was
    never finished, in its newest checkpoint that has weights (and with load_optimizer an optimizer)."""
    folder = Path(os.path.expanduser(run.process.model_name_or_path))
    saved = [
        path for path in (folder, *reversed(checkpoints(folder))) if any((path / name).is_file() for name in WEIGHTS)
    ]
    if not saved or saved[0] == folder:
        return folder
    # A process that is killed while it saves leaves a checkpoint that is not whole.
    return next((path for path in saved if fault(path) is None), saved[0])


def first_optimizer(run: RunConfig) -> Path | None:
    """`load_optimizer`: the newest checkpoint with an optimizer of the run at model_name_or_path, that of its weights.

    Raises:
        ValueError: it saved none, or trained with another optimizer, or either run trains an adapter.
    """
    if not run.process.load_optimizer:
        return None
    folder = earlier_folder(run)
    found = [path for path in (folder, *reversed(checkpoints(folder))) if (path / "optimizer.json").is_file()]
    key = f"`load_optimizer`{run.place('load_optimizer')}"
    if not found:
        raise ValueError(f"{key}: {folder} and its checkpoints hold no optimizer.json; {WITHOUT_OPTIMIZER}")
    before = read_saved(found[0] / "run.yaml")
    if before.process.lora_enable or run.process.lora_enable:
        who = f"{found[0]} trained" if before.process.lora_enable else "this run trains"
        raise ValueError(
            f"{key}: {who} an adapter (lora_enable), and an optimizer's state is of the weights that it trained; "
            f"{WITHOUT_OPTIMIZER}"
        )
    if before.hyper.optim != run.hyper.optim:
        raise ValueError(f"{key}: {found[0]} was trained with optim {before.hyper.optim}, not {run.hyper.optim}")
    return found[0]


def changed_data(files: Mapping[str, Any], folder: Path) -> str | None:
    """Where a run's data (its files: name -> JSON value) differs from what a checkpoint's know of it; None: nowhere, or
    nothing is known."""
    for name, now in files.items():
        try:
            before = safe_read.read_json(folder / name)
        except FileNotFoundError:
            continue
        except (ValueError, OSError):
            return f"{name} there is damaged"
        if place := first_difference(before, now):
            return f"{place} ({name})"
    return None


def first_difference(before: Any, now: Any, path: str = "") -> str | None:
    """Where two JSON values differ, numbers by more than another machine's rounding; None: nowhere."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = dict.fromkeys([*before, *now])
        pairs = [(f"{path}.{key}".strip("."), before.get(key), now.get(key)) for key in keys]
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = [(f"{path}[{number}]", *pair) for number, pair in enumerate(zip(before, now, strict=True))]
    elif isinstance(before, float) and isinstance(now, (int, float)):
        return None if math.isclose(before, now, rel_tol=1e-4, abs_tol=1e-7) else f"{path} was {before:g}, is {now:g}"
    else:
        return None if before == now else f"{path} was {before}, is {now}"
    return next(filter(None, (first_difference(*pair[1:], pair[0]) for pair in pairs)), None)
