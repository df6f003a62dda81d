"""Configuration keys that every policy predicting chunks of actions shares. Importing this needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from storage.config_keys import HARMLESS, key

DIMS = ("state_dim", "action_dim", "chunk_size", "num_images", "image_height", "image_width")


@dataclass
class ChunkConfig:
    """Sizes known from the data, and how predicted chunks are executed.

    The sizes have no default, so that a wrong shape is never silent.
    """

    state_dim: int | None = key(None, "numbers in the state; filled in from the data", ge=1)
    action_dim: int | None = key(None, "numbers in an action; filled in from the data", ge=1)
    chunk_size: int | None = key(None, "actions per chunk, in control steps; filled in from the data", ge=1)
    num_images: int | None = key(
        None, "images per sample: cameras × frames of history; 0: none; filled in from the data", ge=0
    )
    image_height: int | None = key(None, "pixels; filled in from the data", ge=0)
    image_width: int | None = key(None, "pixels; filled in from the data", ge=0)

    n_action_steps: int | None = key(
        None, "actions executed of each chunk before the next is predicted; null: all", ge=1, on_resume=HARMLESS
    )
    temporal_ensemble_coeff: float | None = key(
        None,
        "m of temporal ensembling: predict at every step and average with weights exp(-m·i), "
        "i = 0 the oldest prediction; the paper's value is 0.01; null: execute chunks instead",
        on_resume=HARMLESS,
    )

    inference_delay: int | None = key(
        None,
        "control steps that computing a chunk takes: meanwhile the previous chunk goes on, then hands over smoothly; "
        "needs n_action_steps; null: chunks follow one another without overlap",
        ge=0,
        on_resume=HARMLESS,
    )

    def __post_init__(self) -> None:
        self.check_delay()
        if self.temporal_ensemble_coeff is not None and self.n_action_steps not in (None, 1):
            raise ValueError(
                f"model.temporal_ensemble_coeff predicts at every step, model.n_action_steps: "
                f"{self.n_action_steps} does not; set one of the two to null"
            )
        if None not in (self.n_action_steps, self.chunk_size) and self.n_action_steps > self.chunk_size:
            raise ValueError(
                f"model.n_action_steps: {self.n_action_steps} is more than the data's chunk_size "
                f"{self.chunk_size}; lower it or set it to null"
            )

    def check_delay(self) -> None:
        """Raise ValueError for an `inference_delay` that leaves nothing of the previous chunk to hand over."""
        if self.inference_delay is None:
            return
        if self.temporal_ensemble_coeff is not None:
            raise ValueError(
                f"model.inference_delay: {self.inference_delay} hands over between chunks, but "
                "model.temporal_ensemble_coeff predicts at every step; set one of the two to null"
            )
        steps = self.n_action_steps or self.chunk_size
        if steps is not None and self.chunk_size is not None and steps + self.inference_delay >= self.chunk_size:
            raise ValueError(
                f"model.inference_delay: {self.inference_delay} after {steps} executed actions leaves none of the "
                f"{self.chunk_size} of a chunk to hand over with; lower model.n_action_steps"
            )


@dataclass
class PolicyConfig(ChunkConfig):
    """Further keys of policies that read images by a ResNet and instructions as words."""

    num_words: int | None = key(
        None, "words of instructions that the policy reads; null or 0: none; filled in from the data", ge=0
    )

    backbone: Literal["resnet10", "resnet18", "resnet34", "resnet50", "resnet101"] = key(
        "resnet18", "image backbone; not built when the data has no images"
    )
    backbone_weights: str | None = key(
        None, "pretrained weights of the backbone: hub id or folder; null: random weights", is_path=True
    )
    backbone_norm: Literal["auto", "frozen", "batch", "group"] = key(
        "auto",
        "frozen: batch norms keep the statistics and scales they were loaded with; batch: they "
        "learn; group: group norms instead, for random weights; auto: frozen exactly when backbone_weights is set",
    )


def require_dims(config: ChunkConfig) -> None:
    """Raise ValueError unless the data has filled in every size."""
    if missing := [name for name in DIMS if getattr(config, name) is None]:
        raise ValueError(f"model: {', '.join(missing)} missing; the data set's dims must give them")


def require_resnet_dims(config: PolicyConfig) -> None:
    """Raise ValueError unless the data has filled in every size, and images are large enough for a ResNet."""
    require_dims(config)
    if config.num_images and min(config.image_height, config.image_width) < 32:
        raise ValueError(
            f"model: images of {config.image_height}×{config.image_width} pixels are too small for a ResNet; "
            "record or resize them to at least 32×32"
        )
