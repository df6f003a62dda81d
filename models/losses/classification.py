"""Losses over exclusive classes: one label an item, -100 for an item that carries no loss.

Shapes: B samples, T places of a sample, V classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from models.losses.multi_label import AsymmetricLoss

NO_LOSS = -100


class ClassLoss:
    """Cross entropy with label smoothing, or focal loss, a mean over the items that carry loss.

    Reads `logits` (B, V) with `labels` (B,), or (B, T, V) with `shift_labels` (B, T), the next token at each place; if
    the batch has none, `labels` (B, T) are shifted here, and (B, C, T) of signals taken as they are. Labels (B, V) in
    floating point are probabilities of the classes.
    """

    problem_type: str | None = "single_label_classification"
    targets = frozenset({"labels", "shift_labels"})
    loss_weights: Mapping[str, float] = {}

    def __init__(self, label_smoothing: float = 0.0, gamma: float = 0.0):
        self.label_smoothing, self.gamma = label_smoothing, gamma

    def __call__(self, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Raises ValueError if the network returned no logits."""
        logits = outputs.get("logits")
        if not isinstance(logits, Tensor):
            raise ValueError("`loss`: this model returns no single `logits` to compute the loss from; leave `loss` out")
        labels = labels_of(batch)
        if labels.is_floating_point():
            scores, labels = logits.float(), labels.float()
        else:
            if _is_shifted_here(batch):
                logits = logits[:, :-1]
            scores, labels = logits.flatten(0, -2).float(), labels.flatten()
        errors = F.cross_entropy(scores, labels, label_smoothing=self.label_smoothing, reduction="none")
        if self.gamma:
            errors = (1 - (-errors).exp()) ** self.gamma * errors
        return {"loss": errors.sum() / _items(labels).clamp(min=1)}

    def loss_items(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Items of this batch that carry loss."""
        return {"loss": _items(labels_of(batch))}


class FocalLoss(ClassLoss):
    """Focal loss of classes, or of independent labels (`MultiLabelLoss`).

    Which of the two follows from the data (`fit`). If it does not say, labels in floating point are independent.
    """

    problem_type = None  # both

    def __init__(self, gamma: float):
        super().__init__(gamma=gamma)
        self.multi_label = AsymmetricLoss(gamma, gamma)

    def fit(self, statistics: Mapping[str, Any]) -> None:
        """Read the data's `problem_type`: classes that are mixed in training are in floating point as well."""
        self.problem_type = statistics.get("problem_type")

    def __call__(self, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Tensor]:
        return self.multi_label(outputs, batch) if self._is_multi_label(batch) else super().__call__(outputs, batch)

    def loss_items(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Items of this batch that carry loss: known labels, or samples."""
        return self.multi_label.loss_items(batch) if self._is_multi_label(batch) else super().loss_items(batch)

    def _is_multi_label(self, batch: Mapping[str, Any]) -> bool:
        if self.problem_type is not None:
            return self.problem_type == self.multi_label.problem_type
        return labels_of(batch).is_floating_point()


def _items(labels: Tensor) -> Tensor:
    """Number of labels that are not -100; of probabilities, of samples."""
    return (labels[:, 0] if labels.is_floating_point() else labels).ne(NO_LOSS).sum()


def labels_of(batch: Mapping[str, Any]) -> Tensor:
    """(B,) or, of the next tokens, (B, T), (B, T - 1) or (B, C, T); in floating point (B, V)."""
    if "shift_labels" in batch:
        return batch["shift_labels"]
    return batch["labels"][:, 1:] if _is_shifted_here(batch) else batch["labels"]


def _is_shifted_here(batch: Mapping[str, Any]) -> bool:
    """Whether the labels are the tokens themselves: signals and texts over them have the next ones, and `channels`."""
    labels = batch["labels"]
    is_text = labels.dim() == 2 and not labels.is_floating_point()
    return is_text and "shift_labels" not in batch and "channels" not in batch
