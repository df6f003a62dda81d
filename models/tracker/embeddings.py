"""Embeddings of place and time, and the geometry between two instances.

Shapes: B clips, N instances of a clip, A anchors (boxes of an instance), K numbers of a box, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.tracker.config import EmbeddingConfig, MLPConfig, PositionConfig, TimeConfig


class SpatioTemporalEmbedding(nn.Module):
    """The mean of the embeddings of place and time; zero for one that is turned off."""

    def __init__(self, config: EmbeddingConfig, dim: int, anchors: int, clip_length: int):
        super().__init__()
        self.position = PositionEmbedding(config.pos, dim, anchors) if config.pos.mode is not None else None
        self.time = TimeEmbedding(config.temp, dim, clip_length) if config.temp.mode is not None else None
        self.dim = dim

    def forward(self, boxes: Tensor, frames: Tensor) -> Tensor:
        """boxes (B, N, A, 4) y1x1y2x2 in shares of the image, frames (B, N) of the clip from 0 -> (B, N, D)."""
        total = boxes.new_zeros(*frames.shape, self.dim)
        if self.position is not None:
            total = total + self.position(boxes)
        if self.time is not None:
            total = total + self.time(frames.to(boxes.dtype))
        return total / 2


class PositionEmbedding(nn.Module):
    """Coordinates of all boxes of an instance -> one vector: each is encoded by itself, then they are mixed.

    Encoded numbers are concatenated; layers (`mlp_cfg`) mix them, or a linear map where their width is not D.
    """

    def __init__(self, config: PositionConfig, dim: int, anchors: int):
        super().__init__()
        self.config = config
        numbers = anchors * self._coordinates(torch.zeros(1, 4)).shape[-1]
        each = max(2, dim // numbers // 2 * 2)
        if config.mode == "learned":
            self.table = InterpolatedTable(config.emb_num, numbers, each)
        self.each = each
        if config.mlp_cfg is not None:
            self.mix: nn.Module = mixing_layers(config.mlp_cfg, numbers * each, dim)
        else:
            self.mix = nn.Identity() if numbers * each == dim else nn.Linear(numbers * each, dim)

    def forward(self, boxes: Tensor) -> Tensor:
        """boxes (B, N, A, 4) -> (B, N, D)"""
        config, numbers = self.config, self._coordinates(boxes).flatten(2)  # (B, N, A · K)
        if config.mode == "learned":
            return self.mix(self.table(numbers).flatten(2))
        scale = (config.scale or 2 * math.pi) if config.normalize else 1.0
        return self.mix(sines(numbers * scale, self.each, config.temperature).flatten(2))

    def _coordinates(self, boxes: Tensor) -> Tensor:
        """(…, 4) -> (…, K): the corners, or points on the diagonal, and perhaps the size."""
        config = self.config
        if config.mode == "learned" and config.n_points == 1 and config.over_boxes:
            return boxes
        first, last = boxes[..., :2], boxes[..., 2:]
        shares = [0.5] if config.n_points == 1 else [k / (config.n_points - 1) for k in range(config.n_points)]
        numbers = [first + share * (last - first) for share in shares]
        if config.mode == "learned" and not config.over_boxes:
            numbers.append(last - first)
        return torch.cat(numbers, dim=-1)


class TimeEmbedding(nn.Module):
    """Frames of a clip -> vectors. A learned table spans `clip_length` frames; later ones have its last entry."""

    def __init__(self, config: TimeConfig, dim: int, clip_length: int):
        super().__init__()
        self.config, self.dim, self.last = config, dim, max(1, clip_length - 1)
        if config.mode == "learned":
            self.table = InterpolatedTable(config.emb_num, 1, dim)

    def forward(self, frames: Tensor) -> Tensor:
        """frames (B, N) -> (B, N, D)"""
        if self.config.mode == "learned":
            return self.table(frames[..., None] / self.last).flatten(2)
        return sines(frames, self.dim, self.config.temperature)


class InterpolatedTable(nn.Module):
    """A learned function of each number from 0 to 1: linear between `entries` vectors; constant outside."""

    def __init__(self, entries: int, numbers: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(entries, numbers, width))

    def forward(self, values: Tensor) -> Tensor:
        """values (…, numbers) -> (…, numbers, width)"""
        entries, numbers, _ = self.weight.shape
        place = values.clamp(0, 1) * (entries - 1)
        low = place.floor().clamp(max=entries - 2).long()
        share = (place - low)[..., None]
        index = torch.arange(numbers, device=values.device)
        return (1 - share) * self.weight[low, index] + share * self.weight[low + 1, index]


class PairGeometry(nn.Module):
    """Geometry between two instances -> a bias for each attention head and for their association.

    Displacement counts in sides of the second instance's box, so that it does not depend on the image's size. With
    `motion` it is given once more less what the second instance would have moved: its displacement from the nearest
    instance one frame before, times the frames between.
    """

    HIDDEN = 32

    def __init__(self, heads: int, motion: bool):
        super().__init__()
        self.motion = motion
        self.layers = nn.Sequential(
            nn.Linear(12 if motion else 8, self.HIDDEN), nn.ReLU(), nn.Linear(self.HIDDEN, self.HIDDEN), nn.ReLU()
        )
        self.to_bias = nn.Linear(self.HIDDEN, heads + 1)

    def forward(self, boxes: Tensor, frames: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """boxes (B, N, A, 4), frames (B, N), mask (B, N) -> (bias of attention (B, heads, N, N), of logits (B, N, N))

        Rows are the instances that attend, columns those attended to.
        """
        corners = outline(boxes)
        centres, sizes = (
            (corners[..., :2] + corners[..., 2:]) / 2,
            (corners[..., 2:] - corners[..., :2]).clamp(min=1e-6),
        )
        gaps = (frames[:, :, None] - frames[:, None]).to(boxes.dtype)  # (B, N, N)
        moved = (centres[:, :, None] - centres[:, None]) / sizes[:, None]  # (B, N, N, 2)
        ratios = sizes.log()[:, :, None] - sizes.log()[:, None]
        features = [*distance_features(moved), ratios, gaps[..., None] / 4, gaps.abs()[..., None] / 4]
        if self.motion:
            velocity = nearest_displacement(centres, frames, mask) / sizes
            features += distance_features(moved - velocity[:, None] * gaps[..., None])
        biases = self.to_bias(self.layers(torch.cat(features, dim=-1))).movedim(-1, 1)
        return biases[:, :-1], biases[:, -1]


def outline(boxes: Tensor) -> Tensor:
    """The mean box over the anchors that an instance has; a missing one is all 0: (…, A, 4) -> (…, 4)."""
    return boxes.sum(-2) / boxes.ne(0).any(-1).sum(-1, keepdim=True).clamp(min=1)


def distance_features(displacement: Tensor) -> list[Tensor]:
    """(…, 2) -> its coordinates, compressed where they are large, its length, and the length's logarithm."""
    length = displacement.square().sum(-1, keepdim=True).clamp(min=1e-12).sqrt()
    return [displacement.sign() * displacement.abs().log1p(), length.clamp(max=4), length.clamp(min=1e-3).log()]


def nearest_displacement(centres: Tensor, frames: Tensor, mask: Tensor) -> Tensor:
    """Displacement of each instance from the nearest one of the frame before; 0 if that frame has none: (B, N, 2)."""
    is_before = (frames[:, :, None] - frames[:, None] == 1) & mask[:, None]
    distances = torch.cdist(centres, centres).masked_fill(~is_before, math.inf)
    nearest = distances.argmin(-1)
    displacement = centres - centres.gather(1, nearest[..., None].expand(-1, -1, 2))
    return displacement * is_before.any(-1, keepdim=True)


def sines(angles: Tensor, dim: int, temperature: float) -> Tensor:
    """(…) -> (…, dim): sines and cosines of the angles / temperature^(2i/dim); `models.layers` has 10000."""
    frequencies = temperature ** (-torch.arange(0, dim, 2, device=angles.device, dtype=torch.float32) / dim)
    scaled = angles.float()[..., None] * frequencies
    return torch.stack((scaled.sin(), scaled.cos()), dim=-1).flatten(-2).to(angles.dtype)


def mixing_layers(config: MLPConfig, inputs: int, outputs: int) -> nn.Sequential:
    """Hidden layers with ReLU and dropout, and a linear output."""
    hidden, layers = config.hidden_dims or config.hidden_dim or outputs, []
    for _ in range(config.num_layers):
        layers += [nn.Linear(inputs, hidden), nn.ReLU(), nn.Dropout(config.dropout)]
        inputs = hidden
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


def projection(dim: int, layers: int, dropout: float) -> nn.Sequential:
    """`layers` linear layers of width `dim`, with ReLU and dropout between them."""
    blocks: list[nn.Module] = []
    for _ in range(layers - 1):
        blocks += [nn.Linear(dim, dim), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*blocks, nn.Linear(dim, dim))
