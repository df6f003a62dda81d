"""One image file -> an array at training size, whatever its mode.

Shapes: C channels (1: gray, 3: RGB, 4: RGB and alpha), S pixels of a side.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FILL = 114  # gray of the borders that `pad` adds
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels -> Pillow's mode


class BadImage(ValueError):
    """A file that is missing or cannot be decoded; the message names it."""


@dataclass(frozen=True)
class Decoder:
    """Image -> (C, S, S) uint8: orientation as EXIF says, 16 bits scaled to 8, transparency on white or as a channel.

    Attributes:
        resize: `stretch` to the square, `crop` its middle, or `pad` to it.
        resample: Pillow's number of the filter (2: bilinear, 3: bicubic); shrinking averages over areas.
    """

    size: int
    channels: int = 3
    resize: str = "stretch"
    resample: int = 2

    def __call__(self, image: Any) -> np.ndarray:
        """Raises BadImage.

        Args:
            image: A path, bytes of a file, or an object with `read()`.
        """
        return self._opened(image, self.to_array)

    def check(self, image: Any) -> None:
        """Raise BadImage if a file is missing or is no image; its pixels are not decoded."""
        self._opened(image, lambda opened: None)

    def _opened(self, image: Any, use: Callable[[Any], Any]) -> Any:
        """`use(image)` of an open image, every error as BadImage."""
        from PIL import Image, UnidentifiedImageError

        try:
            if isinstance(image, (str, Path)):
                source: Any = image
            else:
                source = io.BytesIO(image if isinstance(image, bytes) else image.read())
            with Image.open(source) as opened:
                if opened.format == "JPEG":
                    opened.draft(None, (self.size, self.size))  # decodes at 1/2, 1/4 or 1/8 of the size where enough
                return use(opened)
        except FileNotFoundError:
            raise BadImage(f"{image} does not exist") from None
        except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            shown = "an image" if isinstance(image, bytes) else str(image)
            raise BadImage(f"{shown} cannot be decoded: {reason}") from None

    def to_array(self, image: Any) -> np.ndarray:
        """A Pillow image -> (C, S, S) uint8."""
        from PIL import ImageOps

        image = ImageOps.exif_transpose(image)
        image = self.fitted(plain_mode(image, MODES[self.channels]))
        array = np.asarray(image)
        return np.ascontiguousarray(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))

    def fitted(self, image: Any) -> Any:
        """The image as a square of the training size."""
        from PIL import ImageOps

        size = (self.size, self.size)
        if image.size == size:
            return image
        if self.resize == "crop":
            return ImageOps.fit(image, size, self.resample)
        if self.resize == "pad":
            return ImageOps.pad(image, size, self.resample, color=FILL if self.channels == 1 else (FILL,) * 3)  # opaque
        return image.resize(size, self.resample)


def plain_mode(image: Any, mode: str) -> Any:
    """Palette, gray, CMYK, 16-bit and transparent images -> `L`, `RGB` or `RGBA`; the first two on white."""
    from PIL import Image

    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, dtype=np.float32)
        image = Image.fromarray(np.clip(values * (255.0 / brightest(image.mode, values)), 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        if mode != "RGBA":
            white = Image.new("RGBA", image.size, (255, 255, 255, 255))
            image = Image.alpha_composite(white, image)
    return image if image.mode == mode else image.convert(mode)


def brightest(mode: str, values: np.ndarray) -> float:
    """White in an image of more than 8 bits: 65535, or 255 where all values fit; of floating point also 1."""
    largest = float(values.max())
    if mode == "F":
        return next((top for top in (1.0, 255.0) if largest <= top), largest)
    return 255.0 if mode == "I" and largest <= 255 else 65535.0
