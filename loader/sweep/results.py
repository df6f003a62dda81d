"""Compare the runs of a sweep: by a metric of their `metrics.jsonl`; a table, the best run's command, a page."""

from __future__ import annotations

import csv
import io
import json
import math
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loader.schema.keys import ROOT
from loader.sweep.jobs import Record, own_words
from storage.atomic import write_text

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


# ---- what a sweep leaves ----

FILE = "sweep.csv"


def conclude(record: Record, objective: Objective) -> None:
    """Write and print how the runs ended, also if some have not."""
    rows = [_row(record, index, objective) for index in range(len(record.jobs))]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(record.folder / FILE, text.getvalue())
    print("\n".join(table(rows, record)), flush=True)
    scored = [index for index, row in enumerate(rows) if row["outcome"] == "done" and row["best_step"] != ""]
    if scored:
        sign = 1 if objective.mode == "min" else -1
        best = min(scored, key=lambda index: sign * rows[index][objective.name])
        words = own_words(record.jobs[best], str(record.run_folder(best)))
        print(f"best run: {best}, {objective.name} {rows[best][objective.name]:.6g} at step {rows[best]['best_step']}")
        print(f"  python train.py {shlex.join(words)}", flush=True)
    _write_report(record)


def _row(record: Record, index: int, objective: Objective) -> dict[str, object]:
    job, folder = record.jobs[index], record.run_folder(index)
    step, value = objective.best(folder) or ("", "")
    return {
        "run": index,
        "outcome": job.outcome,
        **job.settings,
        objective.name: value,
        "best_step": step,
        "seconds": round(job.seconds, 1) if job.seconds else "",
        "folder": folder,
    }


def table(rows: list[dict[str, object]], record: Record) -> list[str]:
    """The lines of the table at the end: the file's columns but for the folder, with the settings at the end."""
    names = [name for name in (rows[0] if rows else ()) if name != "folder" and name not in record.jobs[0].settings]
    lines = [[*names, "settings"]]
    for row, job in zip(rows, record.jobs, strict=True):
        cells = [f"{row[name]:.6g}" if isinstance(row[name], float) else str(row[name]) or "-" for name in names]
        lines.append([*cells, str(job)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]


def _write_report(record: Record) -> None:
    """A page over the runs, where report.py is installed."""
    folders = [folder for index in range(len(record.jobs)) if ((folder := record.run_folder(index)) / LOG).is_file()]
    if folders and (ROOT / "report.py").is_file():
        page = record.folder / "report.html"
        subprocess.run([sys.executable, str(ROOT / "report.py"), *map(str, folders), "--output", str(page)])
