"""Configuration keys of the learned tokenizer; importing this needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from storage.config_keys import TRAJECTORY, key


@dataclass
class Config:
    """Keys of `model: {name: rvq}`."""

    strides: list[int] = key([2, 2, 2], "stride of each convolution; their product is the samples of a frame")
    width: int = key(32, "channels of the convolutions", ge=1)
    code_dim: int = key(8, "numbers of a code", ge=1)
    quantizers: int = key(2, "stages: ids of a frame", ge=1)
    levels: int = key(256, "codes of each stage", ge=2)
    commitment: float = key(0.25, "weight of the distance of the encoder from its code", ge=0, on_resume=TRAJECTORY)
    target: str | None = key(None, "what the data predicts; known from the data")
    context: int | None = key(None, "samples of a window; known from the data", ge=1)

    def __post_init__(self) -> None:
        if not self.strides or min(self.strides) < 1:
            raise ValueError(f"model.strides: {self.strides} must be at least one stride, each at least 1")

    @property
    def hop(self) -> int:
        """Samples of a frame."""
        return math.prod(self.strides)
