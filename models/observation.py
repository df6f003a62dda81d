"""The condition of a policy: a vector computed from the state and the images of a sample.

Shapes: B batch, K images, F channels and h × w cells of a feature map, P keypoints, D condition.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.backbone import ImageBackbone
from models.denoising import DenoisingConfig

WORDS_DIM = 64  # numbers that an instruction becomes


class SpatialSoftmax(nn.Module):
    """Expected image coordinates of keypoints, each a softmax over the cells of a feature map.

    Source: Finn et al. 2016, arXiv:1509.06113.
    """

    def __init__(self, channels: int, keypoints: int):
        super().__init__()
        self.score = nn.Conv2d(channels, keypoints, kernel_size=1)

    def forward(self, features: Tensor) -> Tensor:
        """features (N, F, h, w) -> (N, 2·P), x and y of each keypoint from -1 (left, top) to 1."""
        scores = self.score(features)
        height, width = scores.shape[-2:]
        y = torch.linspace(-1, 1, height, device=scores.device).repeat_interleave(width)
        x = torch.linspace(-1, 1, width, device=scores.device).repeat(height)
        weights = scores.flatten(2).float().softmax(-1)  # (N, P, h·w)
        return (weights @ torch.stack((x, y), dim=-1)).flatten(1).to(features.dtype)


class ObservationEncoder(nn.Module):
    """State, instruction, and for each image its keypoints or mean features, concatenated."""

    def __init__(self, config: DenoisingConfig):
        super().__init__()
        self.crop_size = config.crop_size
        self.width = config.state_dim
        if config.num_words:
            self.words = nn.Linear(config.num_words, WORDS_DIM)
            self.width += WORDS_DIM
        if config.num_images:
            self.backbone, self.pooling, self.projection, width = image_modules(config)
            self.width += config.num_images * width
            self.per_camera = config.backbone_per_camera
            if self.per_camera:
                others = [image_modules(config)[:3] for _ in range((config.num_cameras or config.num_images) - 1)]
                first = self.backbone, self.pooling, self.projection
                self.backbone, self.pooling, self.projection = map(nn.ModuleList, zip(first, *others, strict=True))

    def forward(
        self,
        state: Tensor,
        images: Tensor | None = None,
        words: Tensor | None = None,
        image_mask: Tensor | None = None,
    ) -> Tensor:
        """state (B, state dim), images (B, K, 3, H, W) uint8, words (B, V) 0 or 1, image_mask (B, K) bool -> (B, D).

        What an image gives is 0 where the mask is false, whatever its pixels are.
        """
        if words is not None:
            state = torch.cat((state, self.words(words.to(state.dtype))), dim=-1)
        if images is None:
            return state
        if self.crop_size is not None:
            images = crop(images, *self.crop_size, random=self.training)
        if not self.per_camera:
            pooled = pool(images, image_mask, self.backbone, self.pooling, self.projection)
        else:
            cameras = len(self.backbone)
            masks = image_mask.chunk(cameras, dim=1) if image_mask is not None else [None] * cameras
            modules = self.backbone, self.pooling, self.projection
            parts = zip(images.chunk(cameras, dim=1), masks, *modules, strict=True)
            pooled = torch.cat([pool(*part) for part in parts], dim=1)
        return torch.cat((state, pooled.flatten(1).to(state.dtype)), dim=-1)


def image_modules(config: DenoisingConfig) -> tuple[nn.Module, nn.Module, nn.Module, int]:
    """Backbone, pooling and projection of images, and how many numbers they make of an image."""
    backbone, pooling, projection = ImageBackbone(config), None, nn.Identity()
    if config.image_pooling == "spatial_softmax":
        pooling, width = SpatialSoftmax(backbone.out_channels, config.keypoints), 2 * config.keypoints
    else:
        pooling, width = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1)), backbone.out_channels
    if config.pooling_projection:
        projection = nn.Sequential(nn.Linear(width, width), nn.ReLU())
    return backbone, pooling, projection, width


def pool(images: Tensor, mask: Tensor | None, backbone: nn.Module, pooling: nn.Module, projection: nn.Module) -> Tensor:
    """images (B, K, 3, H, W), mask (B, K) -> (B, K, numbers of an image), 0 where the mask is false."""
    pooled = projection(pooling(backbone(images, mask).flatten(0, 1))).unflatten(0, images.shape[:2])
    return pooled if mask is None else pooled * mask[..., None]


def crop(images: Tensor, height: int, width: int, random: bool) -> Tensor:
    """Cut (B, K, C, height, width) from (B, K, C, H, W): from the centre, or at random, one place for each sample."""
    free = torch.tensor([images.shape[-2] - height, images.shape[-1] - width])
    # Half a pixel is rounded to even, as torchvision does.
    corners = (
        (torch.rand(len(images), 2) * (free + 1)).long() if random else (free / 2).round().long().expand(len(images), 2)
    )
    pieces = [
        sample[..., top : top + height, left : left + width]
        for sample, (top, left) in zip(images, corners.tolist(), strict=True)
    ]
    return torch.stack(pieces)
