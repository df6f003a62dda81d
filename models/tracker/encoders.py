"""Visual encoders: crops of instances -> one vector each.

Shapes: M instances, C channels, H × W pixels, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from models.backbone import IMAGENET_MEAN, IMAGENET_STD
from models.convnet.network import stages
from models.pretrained import load_whole_model
from models.tracker.config import EncoderConfig
from storage.suggestions import did_you_mean

BASIC, BOTTLENECK = [64, 128, 256, 512], [256, 512, 1024, 2048]
# Names of timm and torchvision -> hub id of the same network with weights of ImageNet, its type and sizes.
NETWORKS = {
    f"resnet{layers}": (
        f"microsoft/resnet-{layers}",
        "resnet",
        {"layer_type": "basic" if sizes is BASIC else "bottleneck", "hidden_sizes": sizes, "depths": depths},
    )
    for layers, sizes, depths in (
        (18, BASIC, [2, 2, 2, 2]),
        (26, BOTTLENECK, [2, 2, 2, 2]),
        (34, BASIC, [3, 4, 6, 3]),
        (50, BOTTLENECK, [3, 4, 6, 3]),
        (101, BOTTLENECK, [3, 4, 23, 3]),
        (152, BOTTLENECK, [3, 8, 36, 3]),
    )
} | {
    f"convnext_{size}": (
        f"facebook/convnext-{size}-224",
        "convnext",
        {"depths": [3, 3, depth, 3], "hidden_sizes": [width * 2**stage for stage in range(4)]},
    )
    for size, depth, width in (("tiny", 9, 96), ("small", 27, 96), ("base", 27, 128), ("large", 27, 192))
}
OWN = ("conv", "descriptors", "none")


def build_encoder(config: EncoderConfig, channels: int, crop_size: int) -> tuple[nn.Module, int]:
    """Return (encoder (M, C, H, W) in [0, 1] -> (M, F), F).

    Raises:
        ValueError: an unknown name, crops that are too small, or `in_chans` that their channels do not divide.
    """
    name = config.model_name
    if name not in (*NETWORKS, *OWN):
        hint = did_you_mean(name, (*NETWORKS, *OWN))
        known = ", ".join((*OWN, *NETWORKS))
        raise ValueError(f"`model.encoder_cfg.model_name: {name}` is not an encoder{hint}; known: {known}")
    if name == "none":
        return Constant(), 1
    if not channels:
        raise ValueError(f"`model.encoder_cfg.model_name: {name}`: the data has no images; set it to none")
    in_chans = config.in_chans or channels
    if in_chans % channels:
        raise ValueError(
            f"`model.encoder_cfg.in_chans: {in_chans}` is no multiple of the crops' {channels} channels; leave it out"
        )
    smallest = 2 * 2 ** len(config.widths) if name == "conv" else 32 if name.startswith("convnext") else 1
    if crop_size < smallest:
        raise ValueError(
            f"`model.encoder_cfg.model_name: {name}` needs crops of {smallest} pixels at least, not {crop_size}; raise "
            "crop_size or take another network (conv with fewer widths)"
        )
    if name == "descriptors":
        return Descriptors(), Descriptors.SIZE * channels
    if name == "conv":
        body: nn.Module = stages(in_chans, config.widths, stem_stride=2, norm="group")
        return Pooled(body, in_chans // channels, channels), config.widths[-1]
    _, model_type, sizes = NETWORKS[name]
    body = AutoModel.from_config(AutoConfig.for_model(model_type, num_channels=in_chans, **sizes))
    return Pooled(body, in_chans // channels, channels), sizes["hidden_sizes"][-1]


def load_weights(encoder: nn.Module, config: EncoderConfig, cache_dir: str | None) -> None:
    """Load the weights of ImageNet that `encoder_cfg` asks for into an encoder that `build_encoder` made.

    Raises:
        ValueError: they are not found, or do not fit the architecture.
    """
    hub_id, _, _ = NETWORKS[config.model_name]
    place = config.weights or hub_id
    shown = f"`model.encoder_cfg.weights: {place}`"
    loaded = load_whole_model(AutoModel, place, shown, config=encoder.body.config, cache_dir=cache_dir)
    encoder.body.load_state_dict(loaded.state_dict())


class Pooled(nn.Module):
    """Pixels from 0 to 1 -> normalized -> network -> mean over all places."""

    def __init__(self, body: nn.Module, repeats: int, channels: int):
        super().__init__()
        self.body, self.repeats = body, repeats
        is_colour = repeats * channels == len(IMAGENET_MEAN)
        for name, values in (("pixel_mean", IMAGENET_MEAN), ("pixel_std", IMAGENET_STD)):
            mean = sum(values) / len(values)
            statistics = torch.tensor(values if is_colour else [mean] * (repeats * channels)).view(-1, 1, 1)
            self.register_buffer(name, statistics, persistent=True)

    def forward(self, crops: Tensor, box_sizes: Tensor) -> Tensor:
        pixels = (crops.repeat(1, self.repeats, 1, 1) - self.pixel_mean) / self.pixel_std
        output = self.body(pixels)
        features = output if isinstance(output, Tensor) else output.last_hidden_state
        return features.mean(dim=(-2, -1))


class Descriptors(nn.Module):
    """Size and moments of a crop, which no rotation by 90° changes; nothing is learned.

    Of each channel: mean, standard deviation, and the square roots of the two principal second moments of the
    brightness, in shares of the crop's side. Of the box: logarithms of its shorter and longer side, once a channel.
    """

    SIZE = 6

    def forward(self, crops: Tensor, box_sizes: Tensor) -> Tensor:
        """crops (M, C, H, W) from 0 to 1, box_sizes (M, 2) in shares of the image -> (M, 6 · C)."""
        height, width = crops.shape[-2:]
        y = torch.linspace(-0.5, 0.5, height, device=crops.device)[:, None].expand(height, width)
        x = torch.linspace(-0.5, 0.5, width, device=crops.device)[None].expand(height, width)
        mass = crops / crops.sum(dim=(-2, -1), keepdim=True).clamp(min=1e-6)

        def mean(values: Tensor) -> Tensor:
            return (mass * values).sum(dim=(-2, -1))

        centre_y, centre_x = mean(y), mean(x)
        yy, xx, xy = mean(y * y) - centre_y**2, mean(x * x) - centre_x**2, mean(x * y) - centre_x * centre_y
        middle, spread = (yy + xx) / 2, (((yy - xx) / 2) ** 2 + xy**2).clamp(min=1e-12).sqrt()
        axes = [(middle + spread).clamp(min=0).sqrt(), (middle - spread).clamp(min=0).sqrt()]
        sides = box_sizes.clamp(min=1e-6).log().sort(dim=-1).values[:, None].expand(-1, crops.shape[1], -1)
        moments = torch.stack([crops.mean(dim=(-2, -1)), crops.std(dim=(-2, -1)), *axes], dim=-1)
        return torch.cat([moments, sides], dim=-1).flatten(1)


class Constant(nn.Module):
    """The same for every instance: it is known by its coordinates alone."""

    def forward(self, crops: Tensor | None, box_sizes: Tensor) -> Tensor:
        return torch.ones_like(box_sizes[:, :1])
