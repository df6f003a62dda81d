"""Image preprocessing in torch: resize, pad, normalise, and the patches of Qwen's vision towers.

Shapes: N images, H × W pixels, s pixels of a side of what the backbone sees.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def preprocess(images: Tensor, size: int, resize: str, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """images (N, 3, H, W) uint8 -> (N, 3, s, s) float32, normalised; `pad` puts black at the left and the top."""
    pixels = images.float() / 255
    height, width = pixels.shape[-2:]
    if resize == "pad":
        # Rounded down and without antialiasing, as in SmolVLA: published weights have seen such images.
        ratio = max(height / size, width / size)
        height, width = max(1, int(height / ratio)), max(1, int(width / ratio))
    else:
        height = width = size
    if pixels.shape[-2:] != (height, width):
        pixels = F.interpolate(pixels, size=(height, width), mode="bilinear", align_corners=False)
    if (height, width) != (size, size):
        pixels = F.pad(pixels, (size - width, 0, size - height, 0))
    mean, std = (torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in (mean, std))
    return (pixels - mean) / std


def patches(pixels: Tensor, patch: int, merge: int, frames: int) -> Tensor:
    """pixels (N, 3, s, s) -> (N · (s / patch)², 3 · frames · patch²), as Qwen's vision towers expect them.

    Patches that become one token (merge × merge) follow one another. An image is a video of `frames` equal frames.
    """
    side = pixels.shape[-1] // (patch * merge)
    split = pixels.unflatten(-1, (side, merge, patch)).unflatten(2, (side, merge, patch))  # (N, 3, y, m, p, x, m, p)
    split = split.permute(0, 2, 5, 3, 6, 1, 4, 7)  # (N, y, x, m, m, 3, p, p)
    return split.unsqueeze(6).expand(*split.shape[:6], frames, patch, patch).flatten(5).flatten(0, 4)
