"""Configuration keys of the MLP policy; importing this needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from models.policy import PolicyConfig
from storage.config_keys import TRAJECTORY, key


@dataclass
class Config(PolicyConfig):
    """Keys of `model: {name: mlp}`."""

    hidden_dim: int = key(512, "width of each hidden layer", ge=1)
    hidden_layers: int = key(2, "hidden layers", ge=1)
    dropout: float = key(0.0, "after each hidden layer", ge=0, lt=1, on_resume=TRAJECTORY)
    loss: Literal["l1", "mse"] = key("l1", "error of an action: absolute or squared difference", on_resume=TRAJECTORY)
