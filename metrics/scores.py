"""Scores of classifiers from arrays, in float64. Importing this needs only NumPy.

Shapes: N samples, L labels. Multi-label: `scores` (N, L) are probabilities, `targets` (N, L) 1 or 0; NaN or a negative
number is an unknown target, which counts nowhere. Single-label: `predicted` and `targets` (N,) are class indices.

A label without positives (single-label: without samples) has no recall and no average precision: it is left out of
macro and weighted means. Where nothing is predicted, precision is 0, as with scikit-learn's `zero_division=0`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

HALF = 0.5  # decision threshold of a label for which none was tuned
CALIBRATION_BINS = 15


def known(targets: np.ndarray) -> np.ndarray:
    """Where a target is known: neither NaN nor negative."""
    return targets >= 0


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, 0 where whole is 0."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.zeros_like(whole), where=whole > 0)


def precision_recall_curve(scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision and recall of one label at every distinct score as the threshold, highest first.

    Args:
        scores, targets: (N,) of one label.

    Returns:
        precision, recall, thresholds: (number of distinct scores of known targets,)
    """
    true_positives, predicted, thresholds, positives = _cuts(scores, targets)
    return ratio(true_positives, predicted), ratio(true_positives, np.full_like(predicted, positives)), thresholds


def average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    """Sum of precision × step of recall over all thresholds, without interpolation; NaN without positives."""
    precision, recall, _ = precision_recall_curve(scores, targets)
    if not len(recall) or recall[-1] == 0:
        return math.nan
    return float(np.sum(precision * np.diff(recall, prepend=0.0)))


def tune_thresholds(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The decision threshold of each label that gives the highest F1.

    A threshold is the midpoint between the lowest score above it and the highest below it. Of several cuts with the
    same F1 the one nearest to .5 is taken, of two equally near the higher; a label without positives, or with scores
    that are not numbers, has .5.

    Args:
        scores, targets: (N, L), of a validation set.

    Returns:
        (L,) thresholds; a label is predicted where its score is at least the threshold.
    """
    return np.array([_best_threshold(scores[:, label], targets[:, label]) for label in range(scores.shape[1])])


def _best_threshold(scores: np.ndarray, targets: np.ndarray) -> float:
    true_positives, predicted, cuts, positives = _cuts(scores, targets)
    if positives == 0 or not np.isfinite(cuts).all():
        return HALF
    below = np.append(cuts[1:], 0.0)
    middle = (cuts + below) / 2
    middle = np.where(middle > below, middle, cuts)  # neighbouring floats have no number between them
    f1 = 2 * true_positives / (predicted + positives)
    best = middle[f1 == f1.max()]  # highest first
    return float(best[np.argmin(np.abs(best - HALF))])


def _cuts(scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """At every distinct score, highest first: true positives, predictions, the score; and the number of positives."""
    is_known = known(targets)
    scores, is_positive = np.asarray(scores, np.float64)[is_known], targets[is_known] >= HALF
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(is_positive[order])
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)) if len(scores) else np.zeros(0, int)
    return hits[last], last + 1, scores[last], int(is_positive.sum())


def calibration_error(confidences: np.ndarray, correct: np.ndarray, bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error: mean |confidence - share correct| over bins of equal width, weighted by size.

    Source: Guo et al. 2017, arXiv:1706.04599, equation 3.

    Args:
        confidences: (M,) probabilities in [0, 1].
        correct: (M,) whether the event that was predicted with this probability happened.
    """
    index = np.minimum((confidences * bins).astype(int), bins - 1)
    gaps = np.bincount(index, weights=confidences - correct, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidences)) if len(confidences) else math.nan


def label_counts(
    scores: np.ndarray, targets: np.ndarray, thresholds: Sequence[float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True positives, predictions and positives of each label, each (L,), over known targets."""
    is_known = known(targets)
    predicted, actual = (scores >= np.asarray(thresholds)) & is_known, (targets >= HALF) & is_known
    return (predicted & actual).sum(0), predicted.sum(0), actual.sum(0)


def precision_recall_f1(
    true_positives: np.ndarray, predicted: np.ndarray, positives: np.ndarray
) -> dict[str, np.ndarray]:
    """Precision, recall and F1 from counts, 0 where a denominator is 0."""
    return {
        "precision": ratio(true_positives, predicted),
        "recall": ratio(true_positives, positives),
        "f1": ratio(2 * np.asarray(true_positives), np.asarray(predicted) + positives),
    }


def means(values: np.ndarray, support: np.ndarray, name: str) -> dict[str, float]:
    """`macro_<name>` and `weighted_<name>`: over labels with support, plain and weighted by it; NaN if none has."""
    kept = support > 0
    if not kept.any():
        return {f"macro_{name}": math.nan, f"weighted_{name}": math.nan}
    values, weights = values[kept], support[kept]
    return {f"macro_{name}": float(values.mean()), f"weighted_{name}": float(np.average(values, weights=weights))}


def multi_label_scores(scores: np.ndarray, targets: np.ndarray, thresholds: Sequence[float]) -> dict[str, float]:
    """All scores over labels, see `MULTI_LABEL_DIRECTIONS`."""
    if not np.isfinite(scores).all():  # of a model that has diverged
        return dict.fromkeys(MULTI_LABEL_DIRECTIONS, math.nan)
    hits, predicted, positives = counts = label_counts(scores, targets, thresholds)
    values = {}
    for name, per_label in precision_recall_f1(*counts).items():
        micro = precision_recall_f1(hits.sum(), predicted.sum(), positives.sum())[name]
        values |= means(per_label, positives, name) | {f"micro_{name}": float(micro)}
    per_label = np.array([average_precision(scores[:, label], targets[:, label]) for label in range(scores.shape[1])])
    values |= means(per_label, positives, "average_precision")
    values["micro_average_precision"] = average_precision(scores.ravel(), targets.ravel())
    is_known = known(targets)
    wrong = ((scores >= np.asarray(thresholds)) != (targets >= HALF)) & is_known
    rows = is_known.any(1)
    return values | {
        "subset_accuracy": float((~wrong[rows].any(1)).mean()) if rows.any() else math.nan,
        "hamming_loss": float(wrong.sum() / is_known.sum()) if rows.any() else math.nan,
        "calibration_error": calibration_error(scores[is_known], targets[is_known] >= HALF),
    }


def multi_label_rows(labels: Sequence[str], scores: np.ndarray, targets: np.ndarray) -> list[dict[str, str | float]]:
    """One row for each label at the threshold .5, for tables."""
    thresholds = np.full(len(labels), HALF)
    counts = label_counts(scores, targets, thresholds)
    columns = {"support": counts[2], "threshold": thresholds, **precision_recall_f1(*counts)}
    columns["average_precision"] = [average_precision(scores[:, i], targets[:, i]) for i in range(len(labels))]
    return _rows(labels, columns)


def confusion_matrix(predicted: np.ndarray, targets: np.ndarray, classes: int) -> np.ndarray:
    """(classes, classes) counts: row the true class, column the predicted one."""
    return np.bincount(targets * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def single_label_scores(confusion: np.ndarray) -> dict[str, float]:
    """Accuracy, macro and weighted precision, recall and F1 from a confusion matrix."""
    total, support = confusion.sum(), confusion.sum(1)
    values = {"accuracy": float(np.trace(confusion) / total) if total else math.nan}
    for name, per_label in precision_recall_f1(np.diag(confusion), confusion.sum(0), support).items():
        values |= means(per_label, support, name)
    return values


def single_label_rows(labels: Sequence[str], confusion: np.ndarray) -> list[dict[str, str | float]]:
    """One row for each class, for tables."""
    support = confusion.sum(1)
    return _rows(labels, {"support": support, **precision_recall_f1(np.diag(confusion), confusion.sum(0), support)})


def _rows(labels: Sequence[str], columns: dict[str, Sequence[float]]) -> list[dict[str, str | float]]:
    return [
        {"label": label, **{name: np.asarray(values)[index].item() for name, values in columns.items()}}
        for index, label in enumerate(labels)
    ]


_MULTI_LABEL_NAMES = [
    f"{mean}_{name}"
    for name in ("precision", "recall", "f1", "average_precision")
    for mean in ("macro", "micro", "weighted")
]
_SINGLE_LABEL_NAMES = [f"{mean}_{name}" for name in ("precision", "recall", "f1") for mean in ("macro", "weighted")]
MULTI_LABEL_DIRECTIONS = {
    **dict.fromkeys([*_MULTI_LABEL_NAMES, "subset_accuracy"], "max"),
    **dict.fromkeys(["hamming_loss", "calibration_error"], "min"),
}
SINGLE_LABEL_DIRECTIONS = {
    **dict.fromkeys(["accuracy", "top5_accuracy", *_SINGLE_LABEL_NAMES], "max"),
    "calibration_error": "min",
}
