"""What eval.py writes of classified images: scores, a table per label, curves, thresholds, a sheet of mistakes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metrics import report as files
from metrics.classification import MultiLabelMetric
from metrics.scores import HALF, multi_label_scores, tune_thresholds
from storage import safe_read
from storage.atomic import write_json

MISTAKES, COLUMNS = 24, 6
MOST_CLASSES = 60  # of a picture of the confusion of classes
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
        shown = [{name: value for name, value in row.items() if not name.startswith("as ")} for row in rows]
        lines = [*metric.notes(), *files.label_table(shown)]
        if isinstance(metric, MultiLabelMetric):
            probabilities, targets = metric.predictions()
            thresholds = self.thresholds(split, probabilities, targets, folder)
            if thresholds is not None:
                tuned = multi_label_scores(probabilities, targets, thresholds)
                tuned = {name: tuned[name] for name in TUNED}
                scores = {**scores, **{f"{name}_tuned": value for name, value in tuned.items()}}
                shown = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in tuned.items())
                lines.append(f"with thresholds tuned on validation: {shown}")
            files.draw_precision_recall(folder, self.labels, probabilities, targets)
            self.draw_wrong_labels(dataset, probabilities, targets, folder)
        else:
            if len(self.labels) <= MOST_CLASSES:
                files.draw_confusion(folder, self.labels, metric.confusion_matrix())
            self.draw_wrong_classes(dataset, *metric.predictions(), folder)
        files.write_scores(folder, scores)
        files.write_table(folder / "labels.csv", rows)
        return [*lines, f"scores, tables and pictures in {folder}"]

    def thresholds(
        self, split: str, probabilities: np.ndarray, targets: np.ndarray, folder: Path
    ) -> list[float] | None:
        """The threshold of each label: tuned on validation, for other splits as tuned there, None if they were not."""
        if split == "validation":
            tuned = [float(value) for value in tune_thresholds(probabilities, targets)]
            write_json(folder / "thresholds.json", dict(zip(self.labels, tuned, strict=True)))
            return tuned
        file = folder.parent / "thresholds.json"
        return read_thresholds(file, self.labels) if file.is_file() else None

    def draw_wrong_labels(self, dataset: Any, probabilities: np.ndarray, targets: np.ndarray, folder: Path) -> None:
        """mistakes.png: the images with the largest error of one label, which is named with its probability."""
        errors = np.where(targets >= HALF, 1 - probabilities, probabilities)
        errors[~(targets >= 0)] = 0

        def title(row: int) -> str:
            label = int(errors[row].argmax())
            wrong = "missed" if targets[row, label] >= HALF else "not there"
            return f"{self.labels[label]} {wrong}\np = {probabilities[row, label]:.2f}"

        draw_images(folder / "mistakes.png", dataset, np.argsort(-errors.max(1), kind="stable"), title)

    def draw_wrong_classes(
        self, dataset: Any, predicted: np.ndarray, targets: np.ndarray, confidence: np.ndarray, folder: Path
    ) -> None:
        """mistakes.png: the images whose wrong class has the largest probability."""

        def title(row: int) -> str:
            return f"{self.labels[targets[row]]}, not {self.labels[predicted[row]]}\np = {confidence[row]:.2f}"

        wrong = np.flatnonzero(predicted != targets)
        draw_images(folder / "mistakes.png", dataset, wrong[np.argsort(-confidence[wrong], kind="stable")], title)


def draw_images(path: Path, dataset: Any, rows: Sequence[int], title: Callable[[int], str]) -> None:
    """A sheet of the first images, each below its title."""
    from matplotlib.figure import Figure

    shown = [int(row) for row in rows[:MISTAKES]]
    lines = max(1, -(-len(shown) // COLUMNS))
    figure = Figure(figsize=(2.2 * COLUMNS, 2.5 * lines), layout="constrained")
    all_axes = list(figure.subplots(lines, COLUMNS, squeeze=False).flat)
    for axes in all_axes:
        axes.axis("off")
    for row, axes in zip(shown, all_axes, strict=False):
        image = dataset[row][0].transpose(1, 2, 0)
        axes.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)
        axes.set_title(title(row), fontsize=8)
    figure.savefig(path, dpi=90)


def read_thresholds(file: Path, labels: Sequence[str]) -> list[float]:
    """The decision threshold of each label, as `Report` wrote them; .5 for a label that the file lacks.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        values = safe_read.read_json(file)
        return [float(values.get(label, HALF)) for label in labels]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is damaged ({error}); score the validation set again, or delete the file") from None
