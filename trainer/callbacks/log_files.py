"""Files of a run's folder: whole or absent, never half-written."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from storage.atomic import write_text


def drop_later_lines(path: Path, state: Any) -> None:
    """Keep the JSON lines (with `step`) that a run resumed from `state` will not write again.

    Args:
        state: The Trainer's; at step 0 nothing is kept.
    """
    if not path.exists():
        return
    # A power cut may leave anything at the end of a file.
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    kept = [line for line in lines if is_of_the_past(_record(line), state)]
    if len(kept) < len(lines):
        write_text(path, "".join(kept))


def is_of_the_past(record: Mapping[str, Any], state: Any) -> bool:
    """Whether a record with `step` was written before the state: not later, nor at its step by what was logged, or an
    evaluation that ended, after the state was saved."""
    step = record.get("step")
    if not isinstance(step, int) or step > state.global_step or state.global_step == 0:
        return False
    if step < state.global_step:
        return True
    known = [each for each in state.log_history if each.get("step") == step]
    if is_evaluation(record):
        return any(is_evaluation(each) for each in known)
    names = {name for name, value in record.items() if value != ""}  # a table has all columns in each row
    return any(names <= each.keys() for each in known)


def is_evaluation(record: Mapping[str, Any]) -> bool:
    """Whether a record holds an evaluation's values."""
    return any(name.startswith("eval_") and value not in (None, "") for name, value in record.items())


def _record(line: str) -> dict[str, Any]:
    """Empty for a line that is none, as a torn last one: the process was killed while it wrote it."""
    try:
        found = json.loads(line) if line.endswith("\n") else {}
        return found if isinstance(found, dict) else {}
    except (ValueError, RecursionError):
        return {}


def check_appendable(path: Path) -> None:
    """What a run adds to must be a file that it may read and write, if it is there at all.

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
    """Adds text at a file's end: all of it, or none where there is no room.

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


def json_number(value: Any) -> Any:
    """JSON has no NaN: a number that is not finite is written as the word, not as broken JSON."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def write_files(folder: Path, files: Mapping[str, Any]) -> None:
    """Each entry under its name: text as it is, anything else as JSON."""
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content, indent=1, allow_nan=False) + "\n"
        write_text(folder / name, text)
