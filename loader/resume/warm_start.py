"""What an earlier run provides to this one: first weights, optimizer state, and the data it was trained on."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loader.resolve.resolver import read_saved
from loader.resolve.run_config import RunConfig
from loader.resume.find_checkpoint import WEIGHTS, ResumePoint, inspect
from storage import safe_read
from storage.checkpoints import checkpoints

WITHOUT_OPTIMIZER = "begin with a new one: --set load_optimizer=false"


def earlier_folder(run: RunConfig) -> Path:
    """Return the folder with the weights of an earlier run (`is_pretrained`, `load_pretrain`).

    That is the folder of the run, or if the run never finished, its newest complete checkpoint.
    """
    folder = Path(os.path.expanduser(run.process.model_name_or_path))
    saved = [
        path for path in (folder, *reversed(checkpoints(folder))) if any((path / name).is_file() for name in WEIGHTS)
    ]
    if not saved or saved[0] == folder:
        return folder
    # A process that is killed while it saves leaves an incomplete checkpoint.
    return next((path for path in saved if isinstance(inspect(run, path), ResumePoint)), saved[0])


def first_optimizer(run: RunConfig) -> Path | None:
    """`load_optimizer`: return the newest checkpoint of the run at model_name_or_path that has an optimizer.

    Raises:
        ValueError: there is none, it is of another optimizer, or either run trains an adapter.
    """
    if not run.process.load_optimizer:
        return None
    folder = earlier_folder(run)
    saved = [path for path in (folder, *reversed(checkpoints(folder))) if (path / "optimizer.json").is_file()]
    key = f"`load_optimizer`{run.place('load_optimizer')}"
    if not saved:
        raise ValueError(f"{key}: {folder} and its checkpoints have no optimizer.json; {WITHOUT_OPTIMIZER}")
    point = run.inspected.get(saved[0], (None, None))[1]
    before = point.run if isinstance(point, ResumePoint) else read_saved(saved[0] / "run.yaml")
    if before.process.lora_enable or run.process.lora_enable:
        trains = f"{saved[0]} trained" if before.process.lora_enable else "this run trains"
        raise ValueError(
            f"{key}: {trains} an adapter (lora_enable), and an optimizer's state belongs to the weights that it "
            f"trained; {WITHOUT_OPTIMIZER}"
        )
    if before.hyper.optim != run.hyper.optim:
        raise ValueError(f"{key}: {saved[0]} was trained with optim {before.hyper.optim}, not {run.hyper.optim}")
    return saved[0]


def changed_data(files: Mapping[str, Any], folder: Path) -> str | None:
    """Return where a run's data differs from that of a checkpoint; None: nowhere, or nothing is known of it.

    Args:
        files: What describes the data: file name -> JSON value, see `Bundle.files`.
        folder: The checkpoint.
    """
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
    """Return where two JSON values differ, ignoring rounding of other machines; None: nowhere."""
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
