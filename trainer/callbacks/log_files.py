"""Write files of a run's folder atomically, and append to its log files."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from storage.atomic import write_text


def drop_later_lines(path: Path, state: Any) -> None:
    """Keep only the JSON lines (with `step`) that a run resumed from `state`, a TrainerState, will not repeat."""
    if not path.exists():
        return
    # A power cut may leave anything at the end of a file.
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    kept = [line for line in lines if is_of_the_past(_record(line), state)]
    if len(kept) < len(lines):
        write_text(path, "".join(kept))


def is_of_the_past(record: Mapping[str, Any], state: Any) -> bool:
    """Whether a record with `step` was logged before the state was saved; at the state's own step, its log history
    tells whether the record is older."""
    step = record.get("step")
    if not isinstance(step, int) or step > state.global_step or state.global_step == 0:
        return False
    if step < state.global_step:
        return True
    entries = [entry for entry in state.log_history if entry.get("step") == step]
    if is_evaluation(record):
        return any(is_evaluation(entry) for entry in entries)
    names = {name for name, value in record.items() if value != ""}  # a table has all columns in each row
    return any(names <= entry.keys() for entry in entries)


def is_evaluation(record: Mapping[str, Any]) -> bool:
    """Whether a record has values of an evaluation."""
    return any(name.startswith("eval_") and value not in (None, "") for name, value in record.items())


def _record(line: str) -> dict[str, Any]:
    """The record in a line; empty if the line is damaged, as the last one of a killed process may be."""
    try:
        record = json.loads(line) if line.endswith("\n") else {}
        return record if isinstance(record, dict) else {}
    except (ValueError, RecursionError):
        return {}


def check_appendable(path: Path) -> None:
    """Check that a path is a readable and writable file, if it exists.

    Raises:
        ValueError: it is not.
    """
    if not path.exists():
        return
    try:
        if not path.is_file():
            raise ValueError(f"{path} is not a file, and the run would add to it; move it away")
        path.open("r+b").close()
    except OSError as error:
        raise ValueError(f"{path} cannot be added to: {error.strerror}; change its permissions, or move it") from None


def append(path: Path, text: str) -> None:
    """Append text to a file: all of it, or nothing if the disk is full.

    Raises:
        OSError: the file is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    content = text.encode("utf-8")
    with open(path, "ab", buffering=0) as file:
        end = file.tell()
        try:
            if file.write(content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(end)
            raise


def record_start(folder: Path, step: int, lines: Mapping[str, list[str]]) -> None:
    """Append a line about a start of the run to `starts.jsonl`: its time, its first step, and what it printed."""
    began = time.strftime("%Y-%m-%d %H:%M:%S %z")
    append(folder / "starts.jsonl", json.dumps({"time": began, "step": step, **lines}) + "\n")


def json_number(value: Any) -> Any:
    """Return the value as JSON can hold it: a number that is not finite as a string."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def write_files(folder: Path, files: Mapping[str, Any]) -> None:
    """Write each entry under its name: text as it is, other values as JSON."""
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content, indent=1, allow_nan=False) + "\n"
        write_text(folder / name, text)
