"""Flags of predict.py for signals; importing this needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from storage.config_keys import key


@dataclass
class PredictFlags:
    """How to forecast."""

    steps: int = key(256, "Signals: time steps to forecast after the end of each recording.", ge=1)
    samples: int = key(1, "Signals: forecasts of each recording.", ge=1)
    temperature: float = key(1.0, "Signals: temperature of sampling; 0: always the most probable.", ge=0)
    top_k: int | None = key(None, "Signals: sample from the k most probable ids. Default: from all.", ge=1)
    top_p: float | None = key(
        None, "Signals: sample from the most probable ids that sum to this probability.", gt=0, le=1
    )
    seed: int = key(0, "Signals: seed of sampling.", ge=0)
