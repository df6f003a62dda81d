"""A small convolutional network for small images on a CPU: 24,058 parameters at the defaults, one channel, ten labels.

Each stage is convolution, norm, ReLU and max pooling; the mean or maximum over all places goes into a linear head.

    python train.py --dataset mosaics --model_config configs/model/convnet.yaml

Importing this needs neither torch nor transformers; `build` and `load` bring them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.convnet.config import DIMS, Config

if TYPE_CHECKING:
    from models.convnet.network import ConvNet

TAKES_SOFT_LABELS = True  # labels may be shares of classes, as MixUp makes them
PROCESS_KEYS: frozenset[str] = frozenset()

# Part name -> regular expression over parameter and module names.
PARTS: dict[str, str] = {
    "backbone": r"^stages(\.|$)",
    "vision_tower": r"^stages(\.|$)",  # the same, in the words of vision-language models
    "head": r"^head(\.|$)",
}


def build(config: Config, process: Any) -> ConvNet:
    """A new network for the data's dims.

    Args:
        config: with the data's dims filled in.
        process: process parameters, none of which it reads.

    Raises:
        ValueError: a dim is missing, the images are too small, or names and number of labels contradict each other.
    """
    missing = [name for name in DIMS if getattr(config, name) is None]
    if missing:
        raise ValueError(f"model: {', '.join(missing)} missing; the data set's dims must give them")
    if config.labels is not None and len(config.labels) != config.num_labels:
        raise ValueError(f"model.labels: {len(config.labels)} names for model.num_labels: {config.num_labels}")
    from models.convnet.network import build_network

    return build_network(config)


def load(folder: str | Path) -> ConvNet:
    """The network saved in `folder`, in evaluation mode."""
    from models.convnet.network import ConvNet
    from models.pretrained import load_checkpoint

    return load_checkpoint(ConvNet, folder)
