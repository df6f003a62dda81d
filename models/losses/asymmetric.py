"""Asymmetric loss of independent labels. Importing this needs no torch.

Source: Ben-Baruch et al. 2020, arXiv:2009.14119.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from storage.config_keys import key

PROCESS_KEYS: frozenset[str] = frozenset()


@dataclass
class Config:
    """Keys of `loss: {name: asymmetric}`."""

    gamma_neg: float = key(4.0, "a negative of probability p weighs (p - clip)^gamma_neg", ge=0)
    gamma_pos: float = key(1.0, "a positive of probability p weighs (1 - p)^gamma_pos", ge=0)
    clip: float = key(0.05, "is taken off a negative's probability; negatives below it carry no loss", ge=0, lt=1)


def build(config: Config) -> Any:
    """The loss as a callable on (outputs, batch)."""
    from models.losses.multi_label import AsymmetricLoss

    return AsymmetricLoss(config.gamma_neg, config.gamma_pos, config.clip)
