"""Cross entropy of classes or next tokens. Importing this needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from storage.config_keys import key

PROCESS_KEYS: frozenset[str] = frozenset()


@dataclass
class Config:
    """Keys of `loss: {name: cross_entropy}`."""

    label_smoothing: float = key(0.0, "share of the target that is spread evenly over all classes", ge=0, lt=1)


def build(config: Config) -> Any:
    """The loss as a callable on (outputs, batch)."""
    from models.losses.classification import ClassLoss

    return ClassLoss(label_smoothing=config.label_smoothing)
