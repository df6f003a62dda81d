"""Binary cross entropy of independent labels. Importing this needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from storage.config_keys import key

PROCESS_KEYS: frozenset[str] = frozenset()


@dataclass
class Config:
    """Keys of `loss: {name: bce}`."""

    pos_weight: Literal["auto"] | list[float] | None = key(
        None,
        "factor of each label's positives; auto: negatives / positives of the training split; null: 1",
    )

    def __post_init__(self) -> None:
        if isinstance(self.pos_weight, list) and not all(weight > 0 for weight in self.pos_weight):
            raise ValueError(f"loss.pos_weight: {self.pos_weight} must be positive numbers, one for each label")


def build(config: Config) -> Any:
    """The loss as a callable on (outputs, batch); `fit(statistics)` gives it the data's weights."""
    from models.losses.multi_label import BinaryCrossEntropy

    return BinaryCrossEntropy(config.pos_weight)
