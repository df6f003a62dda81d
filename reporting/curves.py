"""Read curves from metrics.jsonl with bounded memory, and group them into charts."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice, takewhile
from pathlib import Path
from typing import Any

MOST_POINTS = 2000  # of a curve in memory; longer curves keep the extremes of each stretch of steps
POINTS_OF_PAGE = 45_000  # of all curves, about 1.2 MB of JSON
MOST_BYTES_PARSED = 2**24  # of a log at once, about 50,000 lines; of a longer one each stretch of lines keeps a few
PEAKS = [re.compile(rb'"%s": (-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)' % name) for name in (b"loss", b"grad_norm")]
RARE = re.compile(rb'"(?:nan|-?inf)"|"skipped_steps": [1-9]')
NOT_FINITE = ("nan", "inf", "-inf")  # how metrics.jsonl writes them
HOURS_OF_MS = 1 / 3_600_000
SYSTEM = re.compile(r"(^|_)(runtime|ms|mb|per_second)$|^(mfu|total_flos)$")
GROUPS = ("Training", "Evaluation", "Test", "System")

Point = tuple[int, Any]  # step, and a finite number or one of NOT_FINITE


def thinned(points: Sequence[Point], buckets: int) -> list[Point]:
    """Return at most three points for each of `buckets` equal stretches of steps, and the last one.

    Of a stretch these are its lowest, its highest and its first value that is not finite, so that no peak is lost.
    """
    if len(points) <= 2 * buckets:
        return list(points)
    first, last = points[0][0], points[-1][0]
    kept: list[Point] = []
    for _, group in groupby(points, key=lambda point: (point[0] - first) * buckets // (last - first + 1)):
        stretch = list(group)
        finite = [point for point in stretch if not isinstance(point[1], str)]
        picked = [point for point in stretch if isinstance(point[1], str)][:1]
        if finite:
            picked += [min(finite, key=lambda point: point[1]), max(finite, key=lambda point: point[1])]
        kept += sorted(dict(picked).items())
    return kept if kept[-1][0] == last else [*kept, points[-1]]


def notable(lines: Sequence[bytes]) -> list[bytes]:
    """Return the lines of a stretch that a curve must not lose, without parsing them.

    These are the last one and the first of each kind (training, evaluation), the highest loss and gradient norm, what
    is not finite, and skipped steps.
    """
    kinds: dict[tuple[bytes, ...], int] = {}
    for index, line in enumerate(lines):
        kinds.setdefault(tuple(line.split(b'"', 4)[3:4]), index)  # the first name after `step`
    kept = {len(lines) - 1, *kinds.values(), *(index for index, line in enumerate(lines) if RARE.search(line))}
    for pattern in PEAKS:
        found = [(float(match[1]), index) for index, line in enumerate(lines) if (match := pattern.search(line))]
        kept.update(index for _, index in [max(found, default=(0.0, 0))])
    return [lines[index] for index in sorted(kept)]


@dataclass
class MetricsLog:
    """The curves of a run. `update` reads what has been appended to the file since the last call.

    Attributes:
        series: name -> points in order of steps. A step that is logged again, as after a resume, replaces the earlier
            points from there on.
        axes: `epoch` and `hours` (of training, without evaluations) at the logged steps.
        damaged: Lines that are no JSON objects with a step.
        skipped: Optimizer steps that were left out because a loss or gradient was not finite.
    """

    path: Path
    series: dict[str, list[Point]] = field(default_factory=dict)
    axes: dict[str, list[Point]] = field(default_factory=lambda: {"epoch": [], "hours": []})
    offset: int = 0
    file_id: tuple[int, int] | None = None
    damaged: int = 0
    skipped: int = 0

    def update(self) -> bool:
        """Read new lines; returns whether there were any. A file that was rewritten is read from its beginning."""
        try:
            with open(self.path, "rb") as file:
                status = os.fstat(file.fileno())
                if self.file_id != (status.st_dev, status.st_ino) or status.st_size < self.offset:
                    self.__init__(self.path)
                    self.file_id = status.st_dev, status.st_ino
                file.seek(self.offset)
                before = self.offset
                is_long = status.st_size - before > MOST_BYTES_PARSED
                # Of each stretch of a long log about four lines stay.
                stretch = 4 * (status.st_size - before) // MOST_BYTES_PARSED if is_long else 1000
                # A last line without an end is still being written, or its writer was killed.
                whole = takewhile(lambda line: line.endswith(b"\n"), file)
                while lines := list(islice(whole, stretch)):
                    self.offset += sum(map(len, lines))
                    for line in notable(lines) if is_long else lines:
                        self._add(line)
                return self.offset > before
        except OSError:
            return False

    def _add(self, line: bytes) -> None:
        try:
            record = json.loads(line)
            step = record.pop("step")
            if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < 2**53:
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self.damaged += bool(line.strip())
            return
        for name, value in record.items():
            is_finite = _is_finite(value)
            if name != "epoch" and (is_finite or str(value) in NOT_FINITE):
                _append(self.series.setdefault(name, []), step, value if is_finite else str(value))
        if _is_finite(epoch := record.get("epoch")):
            _append(self.axes["epoch"], step, epoch)
        if _is_finite(duration := record.get("step_ms")):
            hours = self.axes["hours"]
            _drop(hours, step)
            at, spent = hours[-1] if hours else (0, 0.0)
            _append(hours, step, spent + (step - at) * duration * HOURS_OF_MS)
        if isinstance(skipped := record.get("skipped_steps"), int):
            self.skipped += skipped

    @property
    def last_step(self) -> int:
        return max((points[-1][0] for points in self.series.values()), default=0)

    def summary(self, name: str) -> dict[str, Any]:
        """`last`, `low`, `high` as (step, value); the latter two None if no value is finite."""
        points = self.series[name]
        finite = [point for point in points if not isinstance(point[1], str)]
        return {
            "last": points[-1],
            "low": min(finite, key=lambda point: point[1], default=None),
            "high": max(finite, key=lambda point: point[1], default=None),
        }


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def _append(points: list[Point], step: int, value: Any) -> None:
    _drop(points, step)
    points.append((step, value))
    if len(points) > 4 * MOST_POINTS:
        points[:] = thinned(points, MOST_POINTS // 2)


def _drop(points: list[Point], step: int) -> None:
    while points and points[-1][0] >= step:
        points.pop()


def page_data(runs: Sequence[tuple[str, MetricsLog, Sequence[int]]]) -> dict[str, Any]:
    """Return the page's data as a JSON value: curves of all runs, and which of them share a chart.

    Args:
        runs: name, log, and the steps from which the run was resumed.
    """
    total = sum(len(log.series) for _, log, _ in runs)
    buckets = max(50, min(MOST_POINTS, POINTS_OF_PAGE // (3 * max(total, 1))))

    def columns(points: Iterable[Point]) -> list[list[Any]]:
        kept = thinned(list(points), buckets)
        return [[step for step, _ in kept], [value for _, value in kept]]

    entries = [
        {
            "name": name,
            "series": {key: columns(points) for key, points in log.series.items()},
            "axes": {key: columns(points) for key, points in log.axes.items() if len(points) > 1},
            "resumes": list(resumes),
        }
        for name, log, resumes in runs
    ]
    return {"runs": entries, "charts": charts([log.series for _, log, _ in runs])}


def charts(runs: Sequence[Mapping[str, Sequence[Point]]]) -> list[dict[str, Any]]:
    """Return the charts: `{"title", "group", "names"}`. Of one run, training and evaluation share a chart.

    A name with a single value in each run is no curve.
    """
    names = list(dict.fromkeys(name for run in runs for name, points in run.items() if len(points) > 1))
    names.sort(key=lambda name: (name not in ("loss", "eval_loss"), name == "weight_decay"))
    partners = {
        name: f"eval_{name}" for name in names if f"eval_{name}" in names and group_of(name, names) == "Training"
    }
    if len(runs) > 1:
        partners = {}  # too many lines
    found = []
    for name in names:
        if name not in partners.values():
            shown = [name, *([partners[name]] if name in partners else [])]
            found.append({"title": name, "group": group_of(name, names), "names": shown})
    return sorted(found, key=lambda chart: GROUPS.index(chart["group"]))


def group_of(name: str, others: Container[str]) -> str:
    """Return the group of a metric; speeds, memory and counters, which have a speed, are `System`."""
    if SYSTEM.search(name) or f"{name}_per_second" in others:
        return "System"
    return {"eval": "Evaluation", "test": "Test"}.get(name.split("_")[0], "Training")
