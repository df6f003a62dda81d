"""Recorded frames to the size a model trains at.

Shapes: F frames, H and W as recorded, h and w in training.
"""

from dataclasses import dataclass

import numpy as np

# Of ImageNet, in RGB: a network that subtracts it sees 0 where the letterbox is.
MEAN_COLOUR = (124, 116, 104)


@dataclass(frozen=True)
class FrameFit:
    """Frames (F, H, W, 3) uint8 -> (F, 3, h, w) uint8, each frame by itself.

    `square` stretches to (height, width); `pad` keeps the proportions and fills up with the mean colour;
    `keep` does not resize, and refuses frames of another size.
    """

    mode: str
    height: int
    width: int
    resizer: str  # "opencv" or "pillow": they differ by a grey level here and there, so a model keeps to one

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        frames = np.asarray(frames)
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
            raise ValueError(
                f"frames are {frames.dtype} of shape {frames.shape}; expected uint8 (frames, height, width, 3)"
            )
        if self.mode == "keep" and frames.shape[1:3] != (self.height, self.width):
            raise ValueError(
                f"image_aspect_ratio: keep, but a frame is {frames.shape[1]}x{frames.shape[2]} where "
                f"others are {self.height}x{self.width}; use square or pad"
            )
        if frames.shape[1:3] != (self.height, self.width):
            frames = np.stack([self.fit(frame) for frame in frames])
        return np.ascontiguousarray(frames.transpose(0, 3, 1, 2))

    def fit(self, frame: np.ndarray) -> np.ndarray:
        """One frame (H, W, 3) -> (h, w, 3)."""
        if self.mode == "square":
            return resize(frame, self.height, self.width, self.resizer)
        ratio = min(self.height / frame.shape[0], self.width / frame.shape[1])
        height, width = (max(1, round(side * ratio)) for side in frame.shape[:2])
        top, left = (self.height - height) // 2, (self.width - width) // 2
        canvas = np.empty((self.height, self.width, 3), np.uint8)
        canvas[:] = MEAN_COLOUR
        canvas[top : top + height, left : left + width] = resize(frame, height, width, self.resizer)
        return canvas


def training_size(mode: str, image_size: list[int] | None, recorded: tuple[int, int]) -> tuple[int, int]:
    """(height, width) in training for frames of one recorded size."""
    if mode == "keep":
        return recorded
    if image_size is not None:
        return image_size[0], image_size[1]
    side = min(recorded) if mode == "square" else max(recorded)
    return side, side


def available_resizer() -> str:
    try:
        import cv2  # noqa: F401
    except ImportError:
        return "pillow"
    return "opencv"


def resize(frame: np.ndarray, height: int, width: int, resizer: str) -> np.ndarray:
    """Area averaging where a frame shrinks, so that fine patterns do not alias; linear where it grows."""
    if frame.shape[:2] == (height, width):
        return frame
    if resizer == "opencv":
        import cv2

        shrinks = height < frame.shape[0] and width < frame.shape[1]
        return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    from PIL import Image

    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR))
