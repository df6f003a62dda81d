"""Configuration keys of WaveNet; importing this needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from storage.config_keys import TRAJECTORY, key


@dataclass
class Config:
    """Keys of `model: {name: wavenet}`."""

    blocks: int = key(2, "repetitions of the layers", ge=1)
    layers: int = key(7, "layers of a block, with dilations 1, 2, 4 …", ge=1, le=20)
    kernel_size: int = key(2, "taps of each dilated convolution", ge=2)
    residual_channels: int = key(32, "width of the residual path and of the gated units", ge=1)
    skip_channels: int = key(64, "width of the skip connections and of the output layers", ge=1)
    dropout: float = key(0.0, "before each dilated convolution", ge=0, lt=1, on_resume=TRAJECTORY)
    target: str | None = key(None, "what the data predicts; known from the data")
    channels: int | None = key(None, "channels; known from the data", ge=1)
    vocab_size: int | None = key(None, "ids; known from the data; null: it predicts a mean and a variance", ge=2)
