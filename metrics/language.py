"""Metrics of language models that follow from the mean loss of a token."""

from __future__ import annotations

import math

from metrics.metric import Metric


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


def exponential(value: float) -> float:
    """e^value, infinite if no float holds it."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
