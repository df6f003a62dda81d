"""Configuration keys of policies whose chunk comes from a denoising network; importing this needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from models.policy import PolicyConfig
from storage.config_keys import TRAJECTORY, key

# Part name -> regular expression over parameter and module names.
PARTS: dict[str, str] = {
    "backbone": r"^observation\.backbone(\.|$)",
    "vision_tower": r"^observation\.backbone(\.|$)",  # the same part under the name that vision-language models use
    "projector": r"^observation\.(pooling|projection|words)(\.|$)",
    "trunk": r"^network(\.|$)",
}

of_unet = partial(key, needs="network", needs_value=("unet",))
of_layers = partial(key, needs="network", needs_value=("transformer", "mlp"))


@dataclass
class DenoisingConfig(PolicyConfig):
    """How observations become a condition, and the network that maps (chunk, time, condition) to a chunk."""

    num_cameras: int | None = key(
        None,
        "cameras, each with num_images / num_cameras frames of history; null: num_images; filled in from the data",
        ge=0,
    )
    network: Literal["unet", "transformer", "mlp"] = key(
        "unet",
        "unet: convolutions along the chunk, modulated by the observation (arXiv:2303.04137); transformer: a token per "
        "action that attends to the observation; mlp: the flattened chunk, for state policies on a CPU",
    )
    unet_channels: list[int] = of_unet(
        [64, 128, 256], "channels of each resolution of the unet; the paper: [512, 1024, 2048]"
    )
    kernel_size: int = of_unet(5, "of the unet's convolutions along the chunk; odd", ge=1)
    group_norm_groups: int = of_unet(8, "groups of the unet's norms; divides every entry of unet_channels", ge=1)
    film_scale: bool = of_unet(True, "the condition scales and shifts the unet's channels; false: it shifts them")
    hidden_dim: int = of_layers(256, "width of the transformer's tokens, or of the mlp's hidden layers", ge=2)
    num_layers: int = of_layers(4, "layers of the transformer, or hidden layers of the mlp", ge=1)
    num_heads: int = key(
        4,
        "attention heads of the transformer; divides hidden_dim",
        ge=1,
        needs="network",
        needs_value=("transformer",),
    )
    dropout: float = of_layers(0.0, "in the transformer and the mlp", ge=0, lt=1, on_resume=TRAJECTORY)
    time_dim: int = key(128, "numbers that encode the time; even", ge=2)
    time_encoding: Literal["alternating", "halves"] = key(
        "alternating",
        "sines and cosines of the time: alternating, with a transformer's frequencies; halves: all sines, then all "
        "cosines, the slowest with frequency 1 / 10000, as in the code of Diffusion Policy",
    )
    image_pooling: Literal["spatial_softmax", "mean"] = key(
        "spatial_softmax", "features of an image: where its keypoints are (arXiv:1509.06113), or their mean"
    )
    keypoints: int = key(
        32,
        "keypoints of an image under spatial_softmax",
        ge=1,
        needs="image_pooling",
        needs_value=("spatial_softmax",),
    )
    pooling_projection: bool = key(
        False, "a linear layer with ReLU after the pooling of each image, as in LeRobot's diffusion policy"
    )
    backbone_per_camera: bool = key(False, "a backbone and pooling for each camera; false: all cameras share them")
    crop_size: list[int] | None = key(
        None, "[height, width] of a random crop in training, of the centre otherwise; null: whole images"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_time_dim(self)
        if self.network == "unet":
            check_unet(self)
        if self.network == "transformer" and self.hidden_dim % self.num_heads:
            raise ValueError(
                f"model.hidden_dim: {self.hidden_dim} is not divisible by model.num_heads: {self.num_heads}; "
                f"try hidden_dim {self.num_heads * max(1, round(self.hidden_dim / self.num_heads))}"
            )
        if self.crop_size is not None and (len(self.crop_size) != 2 or min(self.crop_size) < 32):
            raise ValueError(f"model.crop_size: {self.crop_size} is not [height, width] of at least 32 pixels each")
        if self.crop_size is not None and None not in (self.num_images, self.image_height, self.image_width):
            self.check_crop()

    def check_crop(self) -> None:
        if not self.num_images:
            raise ValueError(f"model.crop_size: {self.crop_size} but the data has no images; set it to null")
        if self.crop_size[0] > self.image_height or self.crop_size[1] > self.image_width:
            raise ValueError(
                f"model.crop_size: {self.crop_size} is larger than the data's images "
                f"[{self.image_height}, {self.image_width}]; lower it"
            )


def check_unet(config: DenoisingConfig) -> None:
    """Raise ValueError for sizes that a unet cannot have; `config` may be another one with keys of these names."""
    if not config.unet_channels or any(width % config.group_norm_groups for width in config.unet_channels):
        raise ValueError(
            f"model.unet_channels: {config.unet_channels} needs entries divisible by model.group_norm_groups: "
            f"{config.group_norm_groups}"
        )
    if config.kernel_size % 2 == 0:
        raise ValueError(f"model.kernel_size: {config.kernel_size} is even; use {config.kernel_size + 1}")
    factor = 2 ** (len(config.unet_channels) - 1)
    if config.chunk_size is not None and config.chunk_size % factor:
        raise ValueError(
            f"dataset.chunk_size: {config.chunk_size} is not divisible by {factor}, by which a unet of "
            f"{len(config.unet_channels)} resolutions shortens it; use "
            f"{config.chunk_size + -config.chunk_size % factor}, or fewer model.unet_channels"
        )


def check_time_dim(config: Any) -> None:
    """Raise ValueError for a size that the time's encoding cannot have."""
    size = config.time_dim
    if size % 2:
        raise ValueError(f"model.time_dim: {size} is odd; sines and cosines share it: use {size + 1}")
    if config.time_encoding == "halves" and size < 4:
        raise ValueError(f"model.time_dim: {size} is too small for model.time_encoding: halves; use 4")
