"""Decode recorded frames and resize them to the size in training.

Shapes: H and W as recorded, h and w in training.
"""

from dataclasses import dataclass

import numpy as np

# Of ImageNet, in RGB: a network that subtracts it sees 0 where the letterbox is.
MEAN_COLOUR = (124, 116, 104)


@dataclass(frozen=True)
class FrameFit:
    """Resize a frame (H, W, 3) uint8 and return it as (3, h, w) uint8.

    `square` stretches to (height, width); `pad` keeps the proportions and fills the rest with the mean colour;
    `keep` does not resize, and refuses frames of another size.
    """

    mode: str
    height: int
    width: int

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        frame = np.asarray(frame)
        if frame.ndim != 3 or frame.shape[-1] != 3 or frame.dtype != np.uint8:
            raise ValueError(f"a frame is {frame.dtype} of shape {frame.shape}; expected uint8 (height, width, 3)")
        if self.mode == "keep" and frame.shape[:2] != (self.height, self.width):
            sizes = f"{frame.shape[0]}x{frame.shape[1]} where others are {self.height}x{self.width}"
            raise ValueError(f"image_aspect_ratio: keep, but a frame is {sizes}; use square or pad")
        return self.fit(frame).transpose(2, 0, 1)

    def fit(self, frame: np.ndarray) -> np.ndarray:
        """(H, W, 3) -> (h, w, 3)."""
        if self.mode != "pad":
            return resize(frame, self.height, self.width)
        ratio = min(self.height / frame.shape[0], self.width / frame.shape[1])
        height, width = (max(1, round(side * ratio)) for side in frame.shape[:2])
        top, left = (self.height - height) // 2, (self.width - width) // 2
        canvas = np.empty((self.height, self.width, 3), np.uint8)
        canvas[:] = MEAN_COLOUR
        canvas[top : top + height, left : left + width] = resize(frame, height, width)
        return canvas


def resize(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """Area averaging if a frame shrinks, so that fine patterns do not alias; linear if it grows."""
    import cv2

    if frame.shape[:2] == (height, width):
        return frame
    shrinks = height < frame.shape[0] and width < frame.shape[1]
    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def training_size(mode: str, image_size: list[int] | None, recorded: tuple[int, int]) -> tuple[int, int]:
    """(height, width) in training for frames of one recorded size."""
    if mode == "keep":
        return recorded
    if image_size is not None:
        return image_size[0], image_size[1]
    side = min(recorded) if mode == "square" else max(recorded)
    return side, side


def decode(compressed: np.ndarray | bytes) -> np.ndarray:
    """A frame (H, W, 3) uint8 from the bytes of a JPEG or PNG file, which zeros may follow.

    ALOHA's recorder passes its frames to `cv2.imencode` as they are, so `cv2.imdecode` returns them with the channels
    in the order in which an uncompressed recording stores them, whatever that order is.
    """
    import cv2

    data = bytes(compressed)
    frame = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    # A JPEG without an end marker is truncated, and the decoder would fill the rest of the frame with grey.
    if frame is None or (data.startswith(b"\xff\xd8") and b"\xff\xd9" not in data):
        raise ValueError(f"{len(data)} bytes are no complete JPEG or PNG image")
    return frame
