"""What a sweep leaves for comparing its runs: a table, `OUT/sweep.csv`, the best run's command, `OUT/report.html`."""

from __future__ import annotations

import csv
import io
import shlex
import subprocess
import sys

from loader.schema.components import ROOT
from loader.sweep.jobs import Record
from loader.sweep.local import own_words
from loader.sweep.objective import LOG, Objective
from storage.atomic import write_text

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
