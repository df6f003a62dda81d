"""The files of an evaluation's report: scores, a table of labels, precision-recall curves.

Pure functions of arrays and a folder; matplotlib is imported where it draws.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metrics.scores import HALF, average_precision, known, precision_recall_curve
from storage.atomic import write_json, write_text

COLORS = 10  # of matplotlib's default cycle


def write_scores(folder: Path, scores: Mapping[str, Any]) -> None:
    """`scores.json`: name -> value, null for one that is not defined."""
    write_json(folder / "scores.json", _without_nan(scores))


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nan(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A CSV file with a header and the rows, which have the same keys; a value that is not defined is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if value != value else value for name, value in row.items()} for row in rows)
    write_text(path, text.getvalue())


def draw_confusion(folder: Path, labels: Sequence[str], confusion: np.ndarray) -> None:
    """`confusion.png`: the share of each true class (row) that is predicted as each class (column), with counts."""
    from matplotlib.figure import Figure

    size = max(4.0, min(16.0, 1.5 + 0.5 * len(labels)))
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    places = range(len(labels))
    axes.set(xlabel="predicted", ylabel="true", xticks=places, yticks=places, yticklabels=labels)
    axes.set_xticklabels(labels, rotation=90)
    for row, column in zip(*np.nonzero(confusion), strict=True):
        tint = "white" if shares[row, column] > 0.6 else "black"
        axes.text(column, row, confusion[row, column], ha="center", va="center", fontsize="small", color=tint)
    figure.savefig(folder / "confusion.png", dpi=110)


def label_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rows as lines with aligned columns."""
    cells = [list(rows[0]), *([_shown(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in cells]


def _shown(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3f}" if value == value else "-"


def draw_precision_recall(folder: Path, labels: Sequence[str], scores: np.ndarray, targets: np.ndarray) -> None:
    """`precision_recall.png`: one curve for each label with positives, with its average precision.

    Args:
        scores, targets: (N, L), see `metrics.scores`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    for number, index in enumerate(np.flatnonzero((targets >= HALF).any(0))):
        precision, recall, _ = precision_recall_curve(scores[:, index], targets[:, index])
        share = np.mean(targets[known(targets[:, index]), index] >= HALF)
        area = average_precision(scores[:, index], targets[:, index])
        axes.step(
            np.append(0.0, recall),
            np.append(precision[0], precision),
            where="pre",
            color=f"C{number % COLORS}",
            linestyle=("-", "--", ":", "-.")[number // COLORS % 4],
            label=f"{labels[index]}: AP {area:.3f}, share {share:.3f}",
        )
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title="Precision and recall per label")
    figure.legend(loc="outside right upper", fontsize="small")
    figure.savefig(folder / "precision_recall.png", dpi=120)
