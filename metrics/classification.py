"""Metrics of classifiers. Importing this needs neither torch nor torchmetrics; the constructors bring them.

torchmetrics collects and gathers the predictions; the scores are computed in float64 (`metrics.scores`), because those
of torchmetrics are in float32. Outputs are `logits` (B, L), targets `labels` (B, L) in 0/1, or class indices (B,).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metrics import scores as formulas
from metrics.metric import RowMetric

TOP = 5
NO_LABEL = "without positives here, and left out of macro and weighted means"


class MultiLabelMetric(RowMetric):
    """Scores of independent labels: see `metrics.scores.MULTI_LABEL_DIRECTIONS`.

    An unknown target (NaN or negative) counts nowhere.

    Args:
        labels: Names of the L labels.
    """

    directions = formulas.MULTI_LABEL_DIRECTIONS

    def __init__(self, labels: Sequence[str]):
        super().__init__(2 * len(labels))
        self.labels = list(labels)

    def update(self, batch: Mapping[str, Any], outputs: Any) -> None:
        import torch

        logits = outputs["logits"].float()
        self.gathered.add(torch.cat((logits, batch["labels"].to(logits)), dim=1))

    def predictions(self) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities and targets of all processes, each (N, L) in float64."""
        import torch

        rows = torch.from_numpy(self.gathered.gather()).double()
        logits, targets = rows.chunk(2, dim=1)
        # Contiguous: equal logits then have equal probabilities to the last bit, and ties stay ties.
        return logits.contiguous().sigmoid().numpy(), targets.numpy()

    def compute(self, loss: float | None = None) -> dict[str, float]:
        return formulas.multi_label_scores(*self.predictions(), [formulas.HALF] * len(self.labels))

    def per_label(self) -> list[dict[str, Any]]:
        """One row for each label (`metrics.scores.multi_label_rows`); after `compute`, which all processes call."""
        return formulas.multi_label_rows(self.labels, *self.predictions())

    def notes(self) -> list[str]:
        """Lines for people about the data that was scored; after `compute`, which all processes call."""
        _, targets = self.predictions()
        return _missing(self.labels, (targets >= formulas.HALF).sum(0))


class SingleLabelMetric(RowMetric):
    """Scores of exclusive classes: see `metrics.scores.SINGLE_LABEL_DIRECTIONS`.

    `top5_accuracy` is computed of more than five classes. Of classes with equal logits the first ranks higher. A sample
    with a negative label counts nowhere. Targets may be probabilities (B, L); the largest is the label.

    Args:
        labels: Names of the L classes.
    """

    def __init__(self, labels: Sequence[str]):
        super().__init__(4)  # predicted class, true class, probability of the predicted class, rank
        self.labels = list(labels)
        self.has_top = len(labels) > TOP
        self.directions = dict(formulas.SINGLE_LABEL_DIRECTIONS)
        if not self.has_top:
            del self.directions["top5_accuracy"]

    def update(self, batch: Mapping[str, Any], outputs: Any) -> None:
        import torch

        logits, labels = outputs["logits"].float(), batch["labels"]
        if labels.dim() == 2:
            labels = labels.argmax(1)
        logits, labels = logits[labels >= 0], labels[labels >= 0]
        # Of the logits: probabilities that differ by less than their rounding are equal.
        confidence, predicted = logits.softmax(1).amax(1), logits.argmax(1)
        target = logits.gather(1, labels[:, None])
        index = torch.arange(logits.shape[1], device=logits.device)
        rank = ((logits > target) | ((logits == target) & (index < labels[:, None]))).sum(1)
        self.gathered.add(torch.stack([predicted.float(), labels.float(), confidence, rank.float()], dim=1))

    def compute(self, loss: float | None = None) -> dict[str, float]:
        rows = self.gathered.gather()
        confidence, rank = rows[:, 2].astype(np.float64), rows[:, 3]
        if not np.isfinite(confidence).all():  # of a model that has diverged
            return dict.fromkeys(self.directions, float("nan"))
        values = formulas.single_label_scores(self.confusion_matrix())
        if self.has_top:
            values["top5_accuracy"] = float((rank < TOP).mean()) if len(rank) else float("nan")
        return values | {"calibration_error": formulas.calibration_error(confidence, rank == 0)}

    def predictions(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Predicted classes, true classes, and probabilities of the predicted ones, of all processes, each (N,)."""
        rows = self.gathered.gather()
        predicted, targets = rows[:, :2].astype(np.int64).T
        return predicted, targets, rows[:, 2]

    def confusion_matrix(self) -> np.ndarray:
        """(L, L) counts: row the true class, column the predicted one."""
        predicted, targets, _ = self.predictions()
        return formulas.confusion_matrix(predicted, targets, len(self.labels))

    def per_label(self) -> list[dict[str, Any]]:
        """One row for each class: support, precision, recall, F1, and how many are predicted as each class.

        After `compute`, which all processes call.
        """
        confusion = self.confusion_matrix()
        rows = formulas.single_label_rows(self.labels, confusion)
        counts = [{f"as {name}": int(n) for name, n in zip(self.labels, row, strict=True)} for row in confusion]
        return [row | predicted_as for row, predicted_as in zip(rows, counts, strict=True)]

    def notes(self) -> list[str]:
        """Lines for people about the data that was scored; after `compute`, which all processes call."""
        return _missing(self.labels, self.confusion_matrix().sum(1))


def _missing(labels: Sequence[str], support: np.ndarray) -> list[str]:
    names = [label for label, count in zip(labels, support, strict=True) if not count]
    return [f"{len(names)} of {len(labels)} labels {NO_LABEL}: {', '.join(names)}"] if names else []


class GroupedClassMetric(SingleLabelMetric):
    """`SingleLabelMetric` with `balanced_accuracy`, the mean recall of the classes, and a table by group.

    Args:
        labels: Names of the classes.
        groups: Names of the groups; `batch["group"]` (B,) numbers them.
    """

    def __init__(self, labels: Sequence[str], groups: Sequence[str]):
        super().__init__(labels)
        self.groups, self.directions = list(groups), {**self.directions, "balanced_accuracy": "max"}
        self.of_groups = RowMetric(2)  # group, whether the class is right

    def reset(self) -> None:
        super().reset()
        self.of_groups.reset()

    def update(self, batch: Mapping[str, Any], outputs: Any) -> None:
        import torch

        super().update(batch, outputs)
        labels = batch["labels"].argmax(1) if batch["labels"].dim() == 2 else batch["labels"]
        right = (outputs["logits"].argmax(1) == labels).float()
        self.of_groups.gathered.add(torch.stack((batch["group"].float(), right), dim=1)[labels >= 0])

    def compute(self, loss: float | None = None) -> dict[str, float]:
        values = super().compute(loss)
        return {**values, "balanced_accuracy": values["macro_recall"]}

    def per_group(self) -> list[dict[str, Any]]:
        """One row for each group with samples: group, samples, accuracy; after `compute`, which all processes call."""
        numbers, right = self.of_groups.gathered.gather().T
        rows = []
        for number, name in enumerate(self.groups):
            chosen = right[numbers == number]
            if len(chosen):
                rows.append({"group": name, "samples": len(chosen), "accuracy": float(np.mean(chosen))})
        return rows
