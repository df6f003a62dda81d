"""Association of instances over frames, the loss of trackers. Importing this needs no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from storage.config_keys import key

PROCESS_KEYS: frozenset[str] = frozenset()


@dataclass
class Config:
    """Keys of `loss: {name: association}`."""

    neg_unmatched: bool = key(
        False, "train instances without an identity to be nothing in every frame; false: leave them out"
    )
    epsilon: float = key(1e-4, "added to the number of pairs that a clip's loss is divided by", gt=0)
    asso_weight: float = key(1.0, "weight of the loss", gt=0)


def build(config: Config) -> Any:
    """The loss as a callable on (outputs, batch)."""
    from models.losses.tracks import AssociationLoss

    return AssociationLoss(**asdict(config))
