"""Metrics of language models: those that follow from the mean loss of a token, and the share of right tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from metrics.metric import Metric, TorchMetrics


class LanguageMetric(Metric):
    """Perplexity and, if known, bits per byte and the improvement over chance.

    Args:
        chance: Loss in nats of a model that knows nothing, the logarithm of the vocabulary's size.
        tokens_per_byte: Of the text that the tokens stand for.
        perplexity: Whether perplexity is wanted; in a training log it would only repeat the loss.
    """

    directions = {"perplexity": "min", "bits_per_byte": "min", "better_than_chance": "max"}

    def __init__(self, chance: float | None = None, tokens_per_byte: float | None = None, perplexity: bool = True):
        self.chance, self.tokens_per_byte, self.perplexity = chance, tokens_per_byte, perplexity

    def compute(self, loss: float | None = None) -> dict[str, float]:
        """The values for a mean loss in nats a token."""
        if loss is None:
            return {}
        values = {}
        if self.chance is not None:
            values["better_than_chance"] = exponential(self.chance - loss)
        if self.perplexity:
            values["perplexity"] = exponential(loss)
        if self.tokens_per_byte is not None:
            values["bits_per_byte"] = loss / math.log(2) * self.tokens_per_byte
        return values


class LanguageAccuracy(TorchMetrics):
    """Share of the target tokens that carry loss which the model predicts, given those before.

    Reads `target_ids` and `target_loss_mask` (B, T) of a batch, and `target_predictions` (B, T) of the outputs.
    """

    def __init__(self):
        from torchmetrics import MeanMetric

        super().__init__({"language_accuracy": MeanMetric()}, {"language_accuracy": "max"}, right_tokens)


def right_tokens(batch: Mapping[str, Any], outputs: Any) -> tuple[Any]:
    """1 for each token that carries loss and is predicted right, 0 for the others of them."""
    right = outputs["target_predictions"] == batch["target_ids"]
    return (right[batch["target_loss_mask"]].float(),)


def exponential(value: float) -> float:
    """e^value, infinite if no float holds it."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
