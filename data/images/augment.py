"""Augmentation of training batches, on the device of the batch, each image by its own random numbers.

Shapes: B images, C channels, S pixels of a side, L labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from data.images.config import Augmentation
from data.mixup import beta

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


class Augment:
    """The `train_transform` of images: crop and flip, colours, RandAugment, erasing, then MixUp or CutMix.

    Args:
        mean, std: What the images are normalised with.
        classes: Number of classes of single labels, which MixUp and CutMix make soft; None: several labels an image.
    """

    def __init__(self, config: Augmentation, mean: Sequence[float], std: Sequence[float], classes: int | None):
        self.config, self.mean, self.std, self.classes = config, tuple(mean), tuple(std), classes

    def __call__(self, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        config, images, labels = self.config, batch["pixel_values"], batch["labels"]
        mean, std = (images.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        images = warp(images * std + mean, config, generator)
        images = jitter(images, config, generator)
        if config.rand_augment:
            images = rand_augment(images, config, generator)
        images = (images.clamp(0, 1) - mean) / std
        images = erase(images, config.erasing, generator)
        images, labels = mix(images, labels, config, self.classes, generator)
        return {**batch, "pixel_values": images, "labels": labels}


def uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """(count,) float32"""
    return torch.rand(count, generator=generator, device=generator.device) * (high - low) + low


def warp(images: Tensor, config: Augmentation, generator: torch.Generator) -> Tensor:
    """Random resized crop and flips in one resampling."""
    count = len(images)
    area = uniform(count, *config.crop_scale, generator)
    ratio = uniform(count, *(math.log(value) for value in config.crop_ratio), generator).exp()
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    x, y = ((2 * uniform(count, 0, 1, generator) - 1) * (1 - side) for side in (width, height))
    flips = [1 - 2 * (uniform(count, 0, 1, generator) < share).float() for share in (config.flip, config.vertical_flip)]
    matrix = images.new_zeros(count, 2, 3)
    matrix[:, 0, 0], matrix[:, 1, 1] = width * flips[0], height * flips[1]
    matrix[:, 0, 2], matrix[:, 1, 2] = x, y
    if config.crop_scale[0] == 1:  # flips alone need no interpolation
        images = torch.where((flips[0] < 0)[:, None, None, None], images.flip(-1), images)
        return torch.where((flips[1] < 0)[:, None, None, None], images.flip(-2), images)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def jitter(images: Tensor, config: Augmentation, generator: torch.Generator) -> Tensor:
    """Brightness, contrast, saturation and hue: one linear map of the colours of each image.

    The hue rotates in the plane of equal luma (YIQ), which is what an HSV rotation does to first order.
    """
    count, channels = images.shape[:2]
    strengths = (config.brightness, config.contrast, config.saturation, config.hue)
    if not any(strengths):
        return images
    if channels == 4:  # what is transparent stays so
        return torch.cat([jitter(images[:, :3], config, generator), images[:, 3:]], dim=1)
    brightness, contrast, saturation = (uniform(count, max(0.0, 1 - s), 1 + s, generator) for s in strengths[:3])
    turn = uniform(count, -config.hue, config.hue, generator) * 2 * math.pi
    luma = images.new_tensor(LUMA if channels == 3 else [1.0])
    if channels == 3:
        colours = torch.eye(3, device=images.device).expand(count, 3, 3)
        gray = luma.expand(3, 3)
        colours = gray + saturation[:, None, None] * (rotation(turn, luma) - gray)
        images = torch.einsum("bij,bjhw->bihw", colours, images)
    images = images * brightness[:, None, None, None]
    middle = torch.einsum("c,bchw->b", luma, images)[:, None, None, None] / (images.shape[-1] * images.shape[-2])
    return middle + contrast[:, None, None, None] * (images - middle)


def rotation(turn: Tensor, luma: Tensor) -> Tensor:
    """(B,) radians -> (B, 3, 3): rotates colours about the gray axis and keeps their luma."""
    to_yiq = luma.new_tensor([LUMA, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)])
    turned = torch.zeros(len(turn), 3, 3, device=luma.device)
    turned[:, 0, 0] = 1
    turned[:, 1, 1] = turned[:, 2, 2] = turn.cos()
    turned[:, 2, 1], turned[:, 1, 2] = turn.sin(), -turn.sin()
    return torch.linalg.inv(to_yiq) @ turned @ to_yiq


def rand_augment(images: Tensor, config: Augmentation, generator: torch.Generator) -> Tensor:
    """RandAugment (arXiv:1909.13719) by kornia, whose global random numbers are seeded from the generator."""
    try:
        from kornia.augmentation.auto import RandAugment
    except ImportError:
        raise ValueError("`dataset.augmentation.rand_augment` needs kornia; pip install 'keel[images]'") from None
    seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
    devices = [images.device] if images.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        operations = RandAugment(n=config.rand_augment, m=config.rand_augment_magnitude)
        return torch.cat([operations(images[:, :3].clamp(0, 1)), images[:, 3:]], dim=1)


def erase(images: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Random erasing (arXiv:1708.04896): a rectangle of 2 to 33 % of the area becomes the mean colour."""
    if not probability:
        return images
    count, size = len(images), images.shape[-1]
    area = uniform(count, 0.02, 0.33, generator)
    ratio = uniform(count, math.log(0.3), math.log(3.3), generator).exp()
    mask = box_mask((area * ratio).sqrt(), (area / ratio).sqrt(), size, generator)
    chosen = uniform(count, 0, 1, generator) < probability
    return images.masked_fill((mask & chosen[:, None, None])[:, None], 0.0)


def box_mask(height: Tensor, width: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """(B, S, S) bool: a box of the given sides (shares of the image) at a random place, cut at the borders."""
    count, places = len(height), (torch.arange(size, device=height.device) + 0.5) / size
    inside = [(places - uniform(count, 0, 1, generator)[:, None]).abs() < side[:, None] / 2 for side in (height, width)]
    return inside[0][:, :, None] & inside[1][:, None, :]


def mix(
    images: Tensor, labels: Tensor, config: Augmentation, classes: int | None, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """MixUp (arXiv:1710.09412) or CutMix (arXiv:1905.04899) of each batch with itself in another order."""
    if not (config.mixup or config.cutmix):
        return images, labels
    if classes is not None:
        labels = F.one_hot(labels, classes).float()
    cut = bool(config.cutmix) and (not config.mixup or bool(uniform(1, 0, 1, generator) < 0.5))
    share = beta(config.cutmix if cut else config.mixup, generator)
    order = torch.randperm(len(images), generator=generator, device=generator.device)
    if cut:
        side = torch.full((1,), math.sqrt(1 - share), device=images.device)
        mask = box_mask(side, side, images.shape[-1], generator)
        images = torch.where(mask[:, None], images[order], images)
        share = 1 - float(mask.float().mean())
    else:
        images = share * images + (1 - share) * images[order]
    return images, share * labels + (1 - share) * labels[order]
