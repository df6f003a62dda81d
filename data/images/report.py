"""What eval.py writes of classified images: scores, a table per label, curves, thresholds, a sheet of mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from metrics import report as files
from metrics.classification import MultiLabelMetric
from metrics.scores import HALF, multi_label_scores, tune_thresholds
from storage import safe_read
from storage.atomic import write_json

MISTAKES, COLUMNS = 24, 6
TUNED = ("macro_f1", "weighted_f1", "subset_accuracy")  # scores that depend on thresholds


class Report:
    """Called by eval.py with the metric that has scored a data set; picklable.

    Args:
        labels: Names of the labels.
    """

    def __init__(self, labels: list[str], is_multi_label: bool):
        self.labels, self.is_multi_label = labels, is_multi_label

    def __call__(self, split: str, dataset: Any, metric: Any, scores: dict[str, float], folder: Path) -> list[str]:
        """Write the files of one split into `folder`; returns lines for people.

        On the validation set decision thresholds are tuned and written to thresholds.json; the test set is scored with
        them beside .5, and never tunes.
        """
        folder = folder if split == "validation" else folder / split
        folder.mkdir(parents=True, exist_ok=True)
        rows = metric.per_label()
        lines = [*metric.notes(), *files.label_table(rows)]
        if isinstance(metric, MultiLabelMetric):
            probabilities, targets = metric.predictions()
            thresholds = self.thresholds(split, probabilities, targets, folder)
            if thresholds is not None:
                tuned = multi_label_scores(probabilities, targets, list(thresholds.values()))
                tuned = {name: tuned[name] for name in TUNED}
                scores = {**scores, **{f"{name}_tuned": value for name, value in tuned.items()}}
                shown = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in tuned.items())
                lines.append(f"with thresholds tuned on validation: {shown}")
            files.draw_precision_recall(folder, self.labels, probabilities, targets)
            self.draw_mistakes(dataset, probabilities, targets, folder)
        files.write_scores(folder, scores)
        files.write_labels(folder, rows)
        return [*lines, f"scores, table, curves and mistakes in {folder}"]

    def thresholds(
        self, split: str, probabilities: np.ndarray, targets: np.ndarray, folder: Path
    ) -> dict[str, float] | None:
        """Label -> threshold: tuned on validation, for other splits as tuned there, None if they were not."""
        if split == "validation":
            tuned = dict(zip(self.labels, map(float, tune_thresholds(probabilities, targets)), strict=True))
            write_json(folder / "thresholds.json", tuned)
            return tuned
        file = folder.parent / "thresholds.json"
        return safe_read.read_json(file) if file.is_file() else None

    def draw_mistakes(self, dataset: Any, probabilities: np.ndarray, targets: np.ndarray, folder: Path) -> None:
        """mistakes.png: the images with the largest error of one label, which is named with its probability."""
        from matplotlib.figure import Figure

        errors = np.where(targets >= HALF, 1 - probabilities, probabilities)
        errors[~(targets >= 0)] = 0
        worst = np.argsort(-errors.max(1), kind="stable")[:MISTAKES]
        rows = max(1, -(-len(worst) // COLUMNS))
        figure = Figure(figsize=(2.2 * COLUMNS, 2.5 * rows), layout="constrained")
        for place, axes in zip(range(rows * COLUMNS), figure.subplots(rows, COLUMNS, squeeze=False).flat, strict=True):
            axes.axis("off")
            if place < len(worst):
                row = int(worst[place])
                label = int(errors[row].argmax())
                image = dataset[row][0].transpose(1, 2, 0)
                axes.imshow(image if image.shape[-1] == 3 else image[..., 0], cmap="gray", vmin=0, vmax=255)
                wrong = "missed" if targets[row, label] >= HALF else "not there"
                axes.set_title(f"{self.labels[label]} {wrong}\np = {probabilities[row, label]:.2f}", fontsize=8)
        figure.savefig(folder / "mistakes.png", dpi=90)
