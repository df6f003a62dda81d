"""Configuration keys of the convolutional network; importing this needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from storage.config_keys import key

DIMS = ("num_labels", "problem_type", "image_size", "num_channels")
GROUP = 4  # channels that `norm: group` normalizes together


def dim(help_text: str, **metadata: Any) -> Any:
    """A size that the data fills in; it has no default, because a wrong shape must never pass unnoticed."""
    return field(default=None, metadata={"help": f"{help_text}; filled in from the data", **metadata})


@dataclass
class Architecture:
    """What config.json holds beside transformers' own fields."""

    widths: list[int] = key([16, 32, 64], "channels of each stage, which halves the image")
    stem_stride: int = key(2, "stride of the first convolution; 1 for images of less than about 40 pixels", ge=1)
    norm: Literal["batch", "group"] = key(
        "batch",
        "batch: learns faster, and what it learns depends on how a step is cut into micro-batches; group: does not",
    )
    pooling: Literal["mean", "max"] = key(
        "mean",
        "of the last stage over all places; mean: what fills the image; max: what is anywhere in it, as small objects",
    )
    image_size: int | None = dim("pixels of a side", ge=1)
    num_channels: int | None = dim("channels of an image", ge=1)

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"model.widths: {self.widths} must be at least one number of channels, each at least 1")
        if self.norm == "group" and any(width % GROUP for width in self.widths):
            raise ValueError(
                f"model.widths: {self.widths} must be multiples of {GROUP} with model.norm: group; change them or "
                "set norm to batch"
            )
        smallest = self.stem_stride * 2 ** len(self.widths)
        if self.image_size is not None and self.image_size < smallest:
            raise ValueError(
                f"images of {self.image_size} pixels are too small for model.stem_stride: {self.stem_stride} and "
                f"{len(self.widths)} model.widths, which need {smallest}; lower stem_stride, or give fewer widths or a "
                "larger dataset.image_size"
            )


@dataclass
class Config(Architecture):
    """Keys of `model: {name: convnet}`."""

    num_labels: int | None = dim("labels", ge=1)
    labels: list[str] | None = dim("names of the labels, saved as id2label")
    problem_type: Literal["single_label_classification", "multi_label_classification"] | None = dim(
        "one class each, or any number of labels"
    )
