"""Files of a run's folder: whole or absent, never half-written."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Writes through a temporary file and one rename: a reader sees the old text or the new, nothing between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def drop_later_lines(path: Path, step: int) -> None:
    """Of a file of JSON lines with `step`, keeps those up to `step`: a resumed run will write the others again."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if _step(line) <= step]
    if len(kept) < len(lines):
        write_text(path, "".join(kept))


def _step(line: str) -> float:
    """A line's step; a torn last line (the process was killed while writing it) counts as beyond any step."""
    try:
        return json.loads(line)["step"] if line.endswith("\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf


def write_files(folder: Path, files: Mapping[str, Any]) -> None:
    """Each entry under its name: text as it is, anything else as JSON."""
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content, indent=1, allow_nan=False) + "\n"
        write_text(folder / name, text)
