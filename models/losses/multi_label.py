"""Losses over independent labels: each (sample, label) is one item, and an unknown label is none.

Shapes: B samples, L labels. `labels` (B, L) are 0 or 1, or between them where an augmentation mixed samples; NaN or a
negative number is unknown and carries no loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

SMALLEST = 1e-8  # keeps the derivative of p^gamma finite at p = 0 for gamma < 1


class MultiLabelLoss:
    """A mean of `errors` over the items that carry loss. Reads `logits` (B, L) and `labels` (B, L)."""

    problem_type = "multi_label_classification"
    targets = frozenset({"labels"})
    loss_weights: Mapping[str, float] = {}

    def errors(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of each item, (B, L)."""
        raise NotImplementedError

    def __call__(self, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Raises ValueError if the network returned no logits of the labels' shape."""
        logits, labels = outputs.get("logits"), batch["labels"]
        if not isinstance(logits, Tensor) or logits.shape != labels.shape:
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else None
            raise ValueError(
                f"`loss`: labels of shape {tuple(labels.shape)} and logits of shape {shape}; this loss needs one logit "
                "and one 0 or 1 for each label; cross_entropy takes one class a sample"
            )
        is_known = labels >= 0
        labels = torch.where(is_known, labels, 0).to(logits.device, torch.float32)
        errors = torch.where(is_known, self.errors(logits.float(), labels), 0.0)
        return {"loss": errors.sum() / is_known.sum().clamp(min=1)}

    def loss_items(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Known labels of this batch."""
        return {"loss": (batch["labels"] >= 0).sum()}


class BinaryCrossEntropy(MultiLabelLoss):
    """Binary cross entropy in which a label's positives weigh `pos_weight`.

    Args:
        pos_weight: (L,) a factor for each label; None: 1; `auto`: what `fit` takes from the data.
    """

    def __init__(self, pos_weight: Sequence[float] | Literal["auto"] | None = None):
        self.pos_weight, self._tensor = pos_weight, None

    def fit(self, statistics: Mapping[str, Any]) -> None:
        """Resolve `auto`; called once after `build`, before training and evaluation.

        A label's weight is negatives / positives, and 1 where one of the two is missing.

        Args:
            statistics: The training split's: `samples`, and `positives` of each label.

        Raises:
            ValueError: `auto`, and the data has no such counts; or a number of weights that is not that of the labels.
        """
        samples, positives = statistics.get("samples"), statistics.get("positives")
        if self.pos_weight == "auto":
            if samples is None or positives is None:
                raise ValueError(
                    "`loss.pos_weight: auto` needs data that counts the positives of each label; give a list of "
                    "weights or null"
                )
            self.pos_weight = [(samples - count) / count if 0 < count < samples else 1.0 for count in positives]
        if None not in (self.pos_weight, positives) and len(self.pos_weight) != len(positives):
            raise ValueError(
                f"`loss.pos_weight` has {len(self.pos_weight)} weights, and the data {len(positives)} labels"
            )

    def errors(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.pos_weight is not None and self._tensor is None:
            assert self.pos_weight != "auto", "`fit` was not called"
            # Made here, not in the constructor: a network may be constructed without memory (the meta device).
            self._tensor = torch.tensor(self.pos_weight, dtype=torch.float32)
        if self._tensor is not None:
            self._tensor = self._tensor.to(logits.device)
        return F.binary_cross_entropy_with_logits(logits, labels, pos_weight=self._tensor, reduction="none")


class AsymmetricLoss(MultiLabelLoss):
    """Cross entropy in which easy items weigh less, negatives and positives differently.

    With p the probability of a label, and q = max(p - clip, 0): a positive's loss is -(1 - p)^gamma_pos · log p, a
    negative's -q^gamma_neg · log(1 - q). Equal gammas without clip are the focal loss. The paper's code sums over a
    batch; this is a mean over items.

    Source: Ben-Baruch et al. 2020, arXiv:2009.14119, equations 4 to 7.
    """

    def __init__(self, gamma_neg: float, gamma_pos: float, clip: float = 0.0):
        self.gamma_neg, self.gamma_pos, self.clip = gamma_neg, gamma_pos, clip

    def errors(self, logits: Tensor, labels: Tensor) -> Tensor:
        positive = _power(torch.sigmoid(-logits), self.gamma_pos) * F.logsigmoid(logits)
        if self.clip:
            shifted = (torch.sigmoid(logits) - self.clip).clamp(min=0)
            log_rest = torch.log1p(-shifted)
        else:
            shifted, log_rest = torch.sigmoid(logits), F.logsigmoid(-logits)
        return -(labels * positive + (1 - labels) * _power(shifted, self.gamma_neg) * log_rest)


def _power(base: Tensor, exponent: float) -> Tensor:
    return base.clamp(min=SMALLEST) ** exponent if exponent else torch.ones_like(base)
