"""One image file -> an array at training size, whatever its mode.

Shapes: C channels (1 or 3), S pixels of a side.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FILL = 114  # gray of the borders that `pad` adds


class BadImage(ValueError):
    """A file that is missing or cannot be decoded; the message names it."""


@dataclass(frozen=True)
class Decoder:
    """Image -> (C, S, S) uint8: orientation as EXIF says, transparency on white, 16 bits scaled to 8.

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
        from PIL import Image, UnidentifiedImageError

        try:
            if isinstance(image, (str, Path)):
                source: Any = image
            else:
                source = io.BytesIO(image if isinstance(image, bytes) else image.read())
            with Image.open(source) as opened:
                if opened.format == "JPEG":
                    opened.draft(None, (self.size, self.size))  # decodes at 1/2, 1/4 or 1/8 of the size where enough
                return self.to_array(opened)
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
        image = self.fitted(plain_mode(image, "RGB" if self.channels == 3 else "L"))
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
            return ImageOps.pad(image, size, self.resample, color=FILL if self.channels == 1 else (FILL,) * 3)
        return image.resize(size, self.resample)


def plain_mode(image: Any, mode: str) -> Any:
    """Palette, gray, CMYK, 16-bit and transparent images -> `RGB` or `L`."""
    from PIL import Image

    if image.mode.startswith(("I;16", "I", "F")) and image.mode != "1":
        values = np.asarray(image, dtype=np.float32)
        top = 65535.0 if image.mode.startswith("I") else max(1.0, float(values.max()))
        top = 255.0 if values.max() <= 255 and not image.mode.startswith("I;16") else top
        image = Image.fromarray(np.clip(values * (255.0 / top), 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image if image.mode == mode else image.convert(mode)
