"""Compare two runs without torch: models and states bit for bit, metrics.jsonl except for times."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from storage import lock, manifest
from storage.atomic import DELETING
from storage.checkpoints import STAGING, checkpoints, step_of
from trainer.verify import checkpoint_dir

TIMING = re.compile(r"(^|_)(runtime|ms|per_second)$|^peak_memory_mb$|^mfu$")
# Files of the newest checkpoint that training resumes from. Its other files hold times, paths or deleted checkpoints.
STATE_FILES = ("optimizer*.json", "scheduler*.json", "scaler*.json", "rng-*.json")


def differences(reference: Path, run: Path) -> list[str]:
    """Return how the end of a killed run differs from that of the uninterrupted one; empty: they are equal."""
    lines = [f"{run.name}: {name} is left" for name in leftovers(run)]
    newest, errors = newest_complete(run)
    lines += errors
    if (error := manifest.verify(run)) is not None:
        lines.append(f"the final model {error}")
    lines += file_differences(reference, run, ("*.safetensors",))
    expected, _ = newest_complete(reference)
    if newest != expected:
        lines.append(f"the newest complete checkpoint is of step {newest}, not {expected}")
    elif newest is not None:
        folders = [checkpoint_dir(folder) / f"checkpoint-{newest}" for folder in (reference, run)]
        lines += file_differences(*folders, ("*.safetensors", *STATE_FILES))
    return lines + metric_differences(reference, run)


def newest_complete(run: Path) -> tuple[int | None, list[str]]:
    """Return the step of the newest complete checkpoint, and a line for every checkpoint that is incomplete."""
    errors = {path: manifest.verify(path) for path in checkpoints(checkpoint_dir(run))}
    complete = [step_of(path) for path, error in errors.items() if error is None]
    lines = [f"{path.name} {error}" for path, error in errors.items() if error is not None]
    return (complete[-1] if complete else None), lines


def file_differences(reference: Path, folder: Path, patterns: Sequence[str]) -> list[str]:
    """Compare the files of two folders byte by byte; safetensors files of equal tensors have equal bytes."""
    expected, present = ({path.name for pattern in patterns for path in at.glob(pattern)} for at in (reference, folder))
    place = folder.name
    lines = [f"{place} has no {name}" for name in sorted(expected - present)]
    lines += [f"{place} has {name}, the uninterrupted run has not" for name in sorted(present - expected)]
    for name in sorted(expected & present):
        if manifest.entry(reference / name) != manifest.entry(folder / name):
            lines.append(f"{place}/{name} differs")
    return lines


def metric_differences(reference: Path, run: Path, before: float = float("inf")) -> list[str]:
    """Return the lines of metrics.jsonl, of steps below `before`, that are missing, repeated or have other values."""
    expected, lines = ([line for line in records(at) if line["step"] < before] for at in (reference, run))
    expected_steps, steps = (Counter(line["step"] for line in group) for group in (expected, lines))
    differing = [f"metrics.jsonl lacks {count} of step {step}" for step, count in (expected_steps - steps).items()]
    differing += [f"metrics.jsonl repeats {count} of step {step}" for step, count in (steps - expected_steps).items()]
    if differing:
        return differing
    for wanted, line in zip(expected, lines, strict=True):
        for name in {**wanted, **line}:
            if wanted.get(name) != line.get(name):
                values = f"{line.get(name)}, not {wanted.get(name)}"
                differing.append(f"metrics.jsonl, step {line['step']}: {name} is {values}")
    return differing


def records(run: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl without times and without the summary at the end of training, which counts only
    the last process. A damaged line has step -1; an unterminated last line is still being written and is left out."""
    path, lines = run / "metrics.jsonl", []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []:
        try:
            record = json.loads(line)
            int(record["step"])
        except (ValueError, KeyError, TypeError):
            record = {"step": -1, "damaged": line}
        if line.endswith("\n") and "train_runtime" not in record:
            lines.append({name: value for name, value in record.items() if not TIMING.search(name)})
    return lines


def last_step(run: Path) -> int:
    """Return the last step that was logged, 0 before the first."""
    return max((record["step"] for record in records(run)), default=0)


def half_written(run: Path) -> list[str]:
    """Return the names of checkpoints that are being written or deleted."""
    return _names_with(checkpoint_dir(run), lambda name: name.startswith((STAGING, DELETING)))


def leftovers(run: Path) -> list[str]:
    """Return the names of temporary files, staging folders and locks, which only a running training may have."""

    def is_left(name: str) -> bool:
        return name.startswith((STAGING, DELETING, lock.NAME)) or (name.startswith(".") and name.endswith(".tmp"))

    return sorted({*_names_with(run, is_left), *_names_with(checkpoint_dir(run), is_left)})


def _names_with(folder: Path, wanted: Callable[[str], bool]) -> list[str]:
    try:
        return sorted(filter(wanted, os.listdir(folder)))
    except OSError:
        return []
