"""The metric by which the runs of a sweep are compared, read from their `metrics.jsonl`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOG = "metrics.jsonl"


class LogReader:
    """Reads the records of a `metrics.jsonl` that grows; a file that a resumed run has shortened is read again."""

    def __init__(self, folder: Path) -> None:
        self.path, self.offset = folder / LOG, 0

    def new_records(self) -> Iterator[dict[str, Any]]:
        """The complete lines since the last call."""
        if not self.path.is_file():
            return
        with open(self.path, "rb") as file:
            if file.seek(0, 2) < self.offset:
                self.offset = 0
            file.seek(self.offset)
            lines = file.read().rpartition(b"\n")[0]
        self.offset += len(lines) + 1 if lines else 0
        for line in lines.splitlines():
            try:
                record = json.loads(line)
            except ValueError:  # a power cut leaves anything in a line
                continue
            if isinstance(record, dict):
                yield record


@dataclass(frozen=True)
class Objective:
    """A metric of the evaluations, and its direction.

    Attributes:
        name: As the user writes it: `val/loss`.
        mode: `min` or `max`.
        find: Returns the name that a record has for it, or None.
    """

    name: str
    mode: str
    find: Callable[[str, Mapping[str, Any]], str | None]

    def values(self, records: Iterator[dict[str, Any]]) -> Iterator[tuple[int, float]]:
        """(step, value) of each evaluation that has a finite value."""
        for record in records:
            scores = {name: value for name, value in record.items() if name.startswith("eval_")}
            value = scores.get(self.find(self.name, scores))
            if isinstance(value, (int, float)) and math.isfinite(value):
                yield record["step"], float(value)

    def best(self, folder: Path) -> tuple[int, float] | None:
        """(step, value) of the best evaluation of a run, the first one of equals; None without any."""
        sign = 1 if self.mode == "min" else -1
        values = self.values(LogReader(folder).new_records())
        return min(values, key=lambda pair: sign * pair[1], default=None)
