"""Scores of classes, also for each group (subject) that the samples are of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metrics.classification import SingleLabelMetric
from metrics.metric import RowMetric


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
