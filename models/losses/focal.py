"""Focal loss: cross entropy in which well-classified items weigh less. Importing this needs no torch.

Source: Lin et al. 2017, arXiv:1708.02002, equation 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from storage.config_keys import key

PROCESS_KEYS: frozenset[str] = frozenset()


@dataclass
class Config:
    """Keys of `loss: {name: focal}`."""

    gamma: float = key(2.0, "an item weighs (1 - p)^gamma, p the probability of its class; 0: cross entropy", ge=0)


def build(config: Config) -> Any:
    """The loss as a callable on (outputs, batch)."""
    from models.losses.classification import ClassLoss

    return ClassLoss(gamma=config.gamma)
