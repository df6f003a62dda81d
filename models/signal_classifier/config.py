"""Configuration keys of the classifier of signals; importing this needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from storage.config_keys import TRAJECTORY, key


@dataclass
class Config:
    """Keys of `model: {name: signal_classifier}`."""

    strides: list[int] = key([1, 2], "stride of each convolution of the stem")
    kernel_size: int = key(5, "taps of each convolution; odd", ge=1)
    hidden_dim: int = key(64, "width of every time step", ge=2)
    layers: int = key(2, "transformer blocks; 0: none", ge=0)
    num_heads: int = key(4, "attention heads; divides hidden_dim", ge=1)
    feedforward_dim: int = key(128, "inner width of the feed-forward blocks", ge=1)
    dropout: float = key(0.1, "in the stem and in each block", ge=0, lt=1, on_resume=TRAJECTORY)
    channels: int | None = key(None, "channels; known from the data", ge=1)
    classes: int | None = key(None, "classes; known from the data", ge=2)
    vocab_size: int | None = key(None, "ids of a quantised signal; known from the data; null: it has values", ge=2)

    def __post_init__(self) -> None:
        if not self.strides or min(self.strides) < 1:
            raise ValueError(f"model.strides: {self.strides} must be at least one stride, each at least 1")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"model.kernel_size: {self.kernel_size} must be odd, so that a step is at the middle")
        if self.hidden_dim % self.num_heads or self.hidden_dim % 2:
            raise ValueError(
                f"model.hidden_dim: {self.hidden_dim} must be even and a multiple of model.num_heads: {self.num_heads}"
            )
