"""Configuration keys of the regression policy; importing this needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from models.denoising import DenoisingConfig
from storage.config_keys import TRAJECTORY, key


@dataclass
class Config(DenoisingConfig):
    """Keys of `model: {name: regression}`."""

    loss: Literal["l1", "mse"] = key("l1", "error of an action: absolute or squared difference", on_resume=TRAJECTORY)
