"""Losses over values: means over all values that are known, that is not NaN.

Outputs have `prediction`, and for a likelihood `log_variance`, each with the shape of `labels`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor


class ValueLoss:
    """Squared error, or with `likelihood` the negative log-likelihood of a Gaussian, in nats a value."""

    targets = frozenset({"labels"})
    problem_type = "values"
    loss_weights: Mapping[str, float] = {}

    def __init__(self, likelihood: bool = False):
        self.likelihood = likelihood

    def __call__(self, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Raises ValueError if the network predicts no values, or no variance."""
        needed = ["prediction", *["log_variance"] * self.likelihood]
        if missing := [name for name in needed if outputs.get(name) is None]:
            raise ValueError(f"`loss`: this model returns no `{missing[0]}` to compute the loss from; leave `loss` out")
        is_known = batch["labels"].isfinite()
        errors = (outputs["prediction"].float() - batch["labels"].float().nan_to_num()) ** 2
        if self.likelihood:
            log_variance = outputs["log_variance"].float()
            errors = (errors * (-log_variance).exp() + log_variance + math.log(2 * math.pi)) / 2
        return {"loss": (errors * is_known).sum() / is_known.sum().clamp(min=1)}

    def loss_items(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Known values of this batch."""
        return {"loss": batch["labels"].isfinite().sum()}
