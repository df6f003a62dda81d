"""Configuration keys of the flow policy; importing this needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from models.denoising import DenoisingConfig
from storage.config_keys import HARMLESS, TRAJECTORY, key


@dataclass
class Config(DenoisingConfig):
    """Keys of `model: {name: flow}`."""

    sampling_steps: int = key(10, "Euler steps from noise to a chunk", ge=1, on_resume=HARMLESS)
    time_alpha: float = key(
        1.5,
        "time in training is drawn from Beta(time_alpha, 1), 1 being pure noise: above 1 more often near the noise; "
        "1: uniformly",
        gt=0,
        on_resume=TRAJECTORY,
    )
