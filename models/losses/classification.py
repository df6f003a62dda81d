"""Losses over classes: one label an item, -100 for an item that carries no loss.

Shapes: B samples, T places of a sample, V classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F

NO_LOSS = -100


class ClassLoss:
    """Cross entropy with label smoothing, or focal loss, a mean over the items that carry loss.

    Reads `logits` (B, V) with `labels` (B,), or (B, T, V) with `shift_labels` (B, T), the next token at each place; if
    the batch has none, `labels` (B, T) are shifted here.
    """

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
        if labels.dim() > 1 and "shift_labels" not in batch:
            logits = logits[:, :-1]
        scores, labels = logits.flatten(0, -2).float(), labels.flatten()
        errors = F.cross_entropy(scores, labels, label_smoothing=self.label_smoothing, reduction="none")
        if self.gamma:
            errors = (1 - (-errors).exp()) ** self.gamma * errors
        return {"loss": errors.sum() / (labels != NO_LOSS).sum().clamp(min=1)}

    def loss_items(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Items of this batch that carry loss."""
        return {"loss": (labels_of(batch) != NO_LOSS).sum()}


def labels_of(batch: Mapping[str, Any]) -> Tensor:
    """(B,) or, of the next tokens, (B, T) or (B, T - 1)."""
    if "shift_labels" in batch:
        return batch["shift_labels"]
    labels = batch["labels"]
    return labels if labels.dim() == 1 else labels[:, 1:]
