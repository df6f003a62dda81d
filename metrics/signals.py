"""Metrics of models that predict the next id, or the next value, of each channel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metrics.language import exponential
from metrics.metric import RowMetric

NO_LABEL = -100


class BitsPerSample(RowMetric):
    """Bits and perplexity of the next id: of all channels, and of each as `bits_per_sample.<channel>`.

    Args:
        channels: Names of the channels; a single one has no values of its own.
        ids_per_sample: Ids of a sample of the recording: quantizers / hop of a learned tokenizer, else 1. The
            perplexity is that of a sample, too.
    """

    def __init__(self, channels: Sequence[str], ids_per_sample: float = 1.0):
        super().__init__(2 * len(channels))  # of each batch: the channels' bits, and their ids
        self.channels, self.ids_per_sample = list(channels), ids_per_sample
        self.directions = dict.fromkeys(["bits_per_sample", "perplexity"], "min")
        if len(channels) > 1:
            self.directions |= {f"bits_per_sample.{name}": "min" for name in channels}

    def update(self, batch: Mapping[str, Any], outputs: Any) -> None:
        import torch
        from torch.nn import functional as F

        labels, channels = batch["labels"], batch["channels"]
        nats = F.cross_entropy(outputs["logits"].float().flatten(0, -2), labels.flatten(), reduction="none")
        per_row = torch.stack((nats.view(labels.shape).double().sum(-1), (labels != NO_LABEL).double().sum(-1)))
        totals = torch.zeros(2, len(self.channels), dtype=torch.float64, device=labels.device)
        totals.index_add_(1, channels.flatten(), per_row.flatten(1))
        self.gathered.add(totals.flatten()[None])

    def per_channel(self) -> np.ndarray:
        """Bits a sample of each channel, (C,); NaN of one without known ids."""
        nats, ids = self._totals()
        return np.divide(nats, ids, out=np.full_like(nats, np.nan), where=ids > 0) / math.log(2) * self.ids_per_sample

    def compute(self, loss: float | None = None) -> dict[str, float]:
        nats, ids = self._totals()
        mean = float(nats.sum() / ids.sum()) * self.ids_per_sample if ids.sum() else math.nan
        values = {"bits_per_sample": mean / math.log(2), "perplexity": exponential(mean)}
        if len(self.channels) > 1:
            each = self.per_channel().tolist()
            values |= {f"bits_per_sample.{name}": bits for name, bits in zip(self.channels, each, strict=True)}
        return values

    def _totals(self) -> np.ndarray:
        """(2, C): nats and ids of each channel."""
        return self.gathered.gather().astype(np.float64).sum(0).reshape(2, -1)


class ValueErrors(RowMetric):
    """Root of the mean squared error of the next value, in standardised units, beside that of the last value.

    `improvement` is the share by which the squared error is less than that of predicting no change.
    """

    directions = {"rmse": "min", "improvement": "max"}

    def __init__(self) -> None:
        super().__init__(3)

    def update(self, batch: Mapping[str, Any], outputs: Any) -> None:
        import torch

        labels = batch["labels"]
        known = labels.isfinite()
        predicted, last, following = (each[known].double() for each in (outputs["prediction"], batch["signal"], labels))
        errors = torch.stack(((predicted - following).square().sum(), (last - following).square().sum(), known.sum()))
        self.gathered.add(errors[None])

    def compute(self, loss: float | None = None) -> dict[str, float]:
        squared, of_last, count = self.gathered.gather().astype(np.float64).sum(0).tolist()
        if not count:
            return dict.fromkeys(self.directions, math.nan)
        return {"rmse": math.sqrt(squared / count), "improvement": 1 - squared / of_last if of_last else math.nan}
