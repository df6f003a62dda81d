"""WaveNet: dilated causal convolutions with gated units and skip connections, over ids or values of signals.

Source: van den Oord et al. 2016, arXiv:1609.03499.

    python train.py --task_name signals --model_config wavenet --set dataset.path=recording.edf

Importing this needs neither torch nor transformers; `build` and `load` bring them.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.wavenet.config import Config

if TYPE_CHECKING:
    from models.wavenet.network import WaveNet

PROCESS_KEYS: frozenset[str] = frozenset()

# Part name -> regular expression over parameter and module names.
PARTS: dict[str, str] = {
    "backbone": r"^(embedding|channel_embedding|layers)(\.|$)",
    "head": r"^head(\.|$)",
}


def build(config: Config, process: Any) -> WaveNet:
    """A new network for the data's dims; without `vocab_size` it reads and predicts values.

    Raises:
        ValueError: the number of channels is missing, or the data has neither ids nor values.
    """
    from models.wavenet.network import WaveNet, WaveNetConfig

    if config.channels is None or config.target not in (None, "tokens", "values"):
        raise ValueError("model wavenet needs channels of signals; set dataset.target to tokens or values")
    return WaveNet(WaveNetConfig(**asdict(config)))


def load(folder: str | Path) -> WaveNet:
    """The network saved in `folder`, in evaluation mode."""
    from models.pretrained import load_checkpoint
    from models.wavenet.network import WaveNet

    return load_checkpoint(WaveNet, folder)
