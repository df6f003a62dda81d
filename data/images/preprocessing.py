"""Size, normalisation and interpolation of a model's images, as its preprocessor_config.json says them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.images.config import Config
from data.images.decode import Decoder
from storage import safe_read

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FILE = "preprocessor_config.json"
DEFAULT_SIZE = 224
BILINEAR = 2  # Pillow's number


@dataclass(frozen=True)
class Preprocessing:
    """How an image file becomes a model's input.

    Attributes:
        size: Pixels of a side.
        mean, std: Of each channel, in units of full brightness, in the model's order of channels.
        resample: Pillow's number of the interpolation.
        flips_channels: The model wants blue, green, red.
    """

    size: int
    channels: int
    resize: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: int = BILINEAR
    flips_channels: bool = False

    @property
    def decoder(self) -> Decoder:
        return Decoder(self.size, self.channels, self.resize, self.resample)

    def as_json(self) -> dict[str, Any]:
        """The file's content: transformers' keys, and Keel's own under `keel`."""
        return {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "do_rescale": True,
            "do_normalize": True,
            "rescale_factor": 1 / 255,
            "size": {"height": self.size, "width": self.size},
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "resample": self.resample,
            **({"do_flip_channel_order": True} if self.flips_channels else {}),
            "keel": {"channels": self.channels, "resize": self.resize},
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Preprocessing:
        """From a file that `as_json` wrote."""
        own = values["keel"]
        mean, std = tuple(values["image_mean"]), tuple(values["image_std"])
        size, flips = values["size"]["height"], bool(values.get("do_flip_channel_order"))
        return cls(size, own["channels"], own["resize"], mean, std, values["resample"], flips)


def preprocessing_of(config: Config, model: str | None, cache_dir: str | None) -> Preprocessing:
    """What the data's keys say, then the pretrained model's own file, then the usual values.

    Args:
        model: `model_name_or_path`, a folder or a hub id, or None.
    """
    theirs = _of_model(model, cache_dir) if model is not None else {}
    size = config.image_size or _size(theirs) or DEFAULT_SIZE
    their_mean, their_std = theirs.get("image_mean"), theirs.get("image_std")
    if theirs and not theirs.get("do_normalize", their_mean is not None):
        their_mean, their_std = (0.0,) * 3, (1.0,) * 3  # such as MobileViT
    mean, std = config.mean or their_mean, config.std or their_std
    if mean is None or std is None:
        mean, std = IMAGENET_MEAN, IMAGENET_STD
    mean, std = (for_channels(tuple(map(float, values)), config.channels) for values in (mean, std))
    resample = theirs.get("resample")
    resample = BILINEAR if resample is None else int(resample)
    flips = config.channels == 3 and bool(theirs.get("do_flip_channel_order"))
    return Preprocessing(size, config.channels, config.resize, mean, std, resample, flips)


def for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Values of a model's channels, for another number of them: their average stands for gray and for alpha."""
    average = (sum(values) / len(values),)
    if len(values) == channels:
        return values
    return average if channels == 1 else (values * 3)[:3] + average * (channels - 3)


def _of_model(model: str, cache_dir: str | None) -> dict[str, Any]:
    """preprocessor_config.json of a folder or of the hub; {} if there is none."""
    if Path(model).expanduser().is_dir():
        file = Path(model).expanduser() / FILE
        return safe_read.read_json(file) if file.is_file() else {}
    from transformers.utils import cached_file

    found = cached_file(model, FILE, cache_dir=cache_dir, _raise_exceptions_for_missing_entries=False)
    return safe_read.read_json(Path(found)) if found else {}


def _size(values: dict[str, Any]) -> int | None:
    """The side of the square that the model sees."""
    for key in ("crop_size", "size"):
        value = values.get(key)
        if isinstance(value, int):
            return value
        if isinstance(value, dict):
            for side in ("height", "shortest_edge"):
                if value.get(side):
                    return int(value[side])
    return None
