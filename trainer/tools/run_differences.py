"""Whether two runs ended the same: models and states bit for bit, metrics.jsonl but for times. Without torch."""

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
from trainer.tools.verify import checkpoint_dir

TIMING = re.compile(r"(^|_)(runtime|ms|per_second)$|^peak_memory_mb$|^mfu$")
# Of the newest checkpoint: what training goes on with. Its other files hold times, paths or the list of what was kept.
STATE_FILES = ("optimizer*.json", "scheduler*.json", "scaler*.json", "rng-*.json")


def differences(whole: Path, killed: Path) -> list[str]:
    """In what the end of a killed run differs from that of the undisturbed one; nothing: they are the same."""
    found = [f"{killed.name}: {name} is left" for name in leftovers(killed)]
    newest, faults = checked(killed)
    found += faults
    if (why := manifest.verify(killed)) is not None:
        found.append(f"the final model {why}")
    found += file_differences(whole, killed, ("*.safetensors",))
    wanted, _ = checked(whole)
    if newest != wanted:
        found.append(f"the newest whole checkpoint is of step {newest}, not {wanted}")
    elif newest is not None:
        folders = [checkpoint_dir(run) / f"checkpoint-{newest}" for run in (whole, killed)]
        found += file_differences(*folders, ("*.safetensors", *STATE_FILES))
    return found + metric_differences(whole, killed)


def checked(run: Path) -> tuple[int | None, list[str]]:
    """The step of the newest whole checkpoint, and a line for every checkpoint that is there and not whole."""
    found = {path: manifest.verify(path) for path in checkpoints(checkpoint_dir(run))}
    whole = [step_of(path) for path, why in found.items() if why is None]
    return (whole[-1] if whole else None), [f"{path.name} {why}" for path, why in found.items() if why is not None]


def file_differences(whole: Path, killed: Path, patterns: Sequence[str]) -> list[str]:
    """Files of one folder and the other, tensor by tensor where they hold tensors and byte by byte elsewhere."""
    names = [{path.name for each in patterns for path in folder.glob(each)} for folder in (whole, killed)]
    place = killed.name
    found = [f"{place} has no {name}" for name in sorted(names[0] - names[1])]
    found += [f"{place} has {name}, the undisturbed run has not" for name in sorted(names[1] - names[0])]
    for name in sorted(names[0] & names[1]):
        if manifest.entry(whole / name) == manifest.entry(killed / name):
            continue
        if name.endswith(".safetensors"):
            try:
                found += [f"{place}/{name}: {each}" for each in tensor_differences(whole / name, killed / name)]
            except (ValueError, KeyError, TypeError, OverflowError, MemoryError):
                found.append(f"{place}/{name} cannot be read")
        else:
            found.append(f"{place}/{name} differs")
    return found


def tensor_differences(whole: Path, killed: Path) -> list[str]:
    """Tensors of two safetensors files that are not equal bit for bit."""
    with open(whole, "rb") as one, open(killed, "rb") as other:
        (tensors, start), (others, other_start) = _header(one), _header(other)
        found = [f"no tensor {name}" for name in tensors if name not in others]
        found += [f"a tensor {name} too many" for name in others if name not in tensors]
        for name in tensors.keys() & others.keys():
            kinds = [{key: of[name][key] for key in ("dtype", "shape")} for of in (tensors, others)]
            if kinds[0] != kinds[1]:
                found.append(f"tensor {name} is {kinds[1]}, not {kinds[0]}")
            elif _bytes_of(one, start, tensors[name]) != _bytes_of(other, other_start, others[name]):
                found.append(f"tensor {name} differs")
    return sorted(found)


def _header(file: Any) -> tuple[dict[str, Any], int]:
    """A safetensors file's tensors by name, and where their bytes begin."""
    length = int.from_bytes(file.read(8), "little")
    entries = json.loads(file.read(length))
    return {name: entry for name, entry in entries.items() if name != "__metadata__"}, 8 + length


def _bytes_of(file: Any, start: int, entry: dict[str, Any]) -> bytes:
    first, end = entry["data_offsets"]
    file.seek(start + first)
    return file.read(end - first)


def metric_differences(whole: Path, killed: Path, before: float = float("inf")) -> list[str]:
    """Lines of metrics.jsonl, of steps before one, that are missing, too many, or of other values."""
    kept = [[each for each in records(run) if each["step"] < before] for run in (whole, killed)]
    steps = [Counter(each["step"] for each in lines) for lines in kept]
    missing, more = steps[0] - steps[1], steps[1] - steps[0]
    found = [f"metrics.jsonl lacks {count} of step {step}" for step, count in missing.items()]
    found += [f"metrics.jsonl has {count} too many of step {step}" for step, count in more.items()]
    if found:
        return found
    for there, here in zip(*kept, strict=True):
        for name in {**there, **here}:
            if there.get(name) != here.get(name):
                value, wanted = here.get(name), there.get(name)
                found.append(f"metrics.jsonl, step {here['step']}: {name} is {value}, not {wanted}")
    return found


def records(run: Path) -> list[dict[str, Any]]:
    """What metrics.jsonl says, but for times and the summary of a training's end, which tells of one process alone. A
    line that is no record is of step -1; a last one without an end is still being written."""
    path, found = run / "metrics.jsonl", []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []:
        try:
            record = json.loads(line)
            int(record["step"])
        except (ValueError, KeyError, TypeError):
            record = {"step": -1, "damaged": line}
        if not line.endswith("\n") or "train_runtime" in record:
            continue
        found.append({name: value for name, value in record.items() if not TIMING.search(name)})
    return found


def last_step(run: Path) -> int:
    """The last step that was logged, 0 before the first."""
    return max((each["step"] for each in records(run)), default=0)


def half_written(run: Path) -> list[str]:
    """Names of checkpoints that are being written or deleted."""
    return _names_with(checkpoint_dir(run), lambda name: name.startswith((STAGING, DELETING)))


def leftovers(run: Path) -> list[str]:
    """Names of what only a living run has in its folder."""

    def is_left(name: str) -> bool:
        return name.startswith((STAGING, DELETING, lock.NAME)) or (name.startswith(".") and name.endswith(".tmp"))

    return sorted({*_names_with(run, is_left), *_names_with(checkpoint_dir(run), is_left)})


def _names_with(folder: Path, wanted: Callable[[str], bool]) -> list[str]:
    try:
        return sorted(filter(wanted, os.listdir(folder)))
    except OSError:
        return []
