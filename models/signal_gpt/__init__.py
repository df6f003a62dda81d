"""A GPT over quantised signals: the next id of every channel from the past of that channel, or of all channels.

    python train.py --task_name signals --model_config signal_gpt --set dataset.path=recording.edf

Importing this needs neither torch nor transformers; `build` and `load` bring them.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.signal_gpt.config import Config

if TYPE_CHECKING:
    from models.signal_gpt.network import SignalGPT

PROCESS_KEYS: frozenset[str] = frozenset()

# Part name -> regular expression over parameter and module names. A tied head is the token embedding itself.
PARTS: dict[str, str] = {
    "backbone": r"^(token_embedding|channel_embedding|position_embedding|blocks|norm)(\.|$)",
    "embeddings": r"^(token_embedding|channel_embedding|position_embedding)(\.|$)",
    "head": r"^head(\.|$)",
}


def build(config: Config, process: Any) -> SignalGPT:
    """A new network for the data's dims.

    Raises:
        ValueError: a dim is missing.
    """
    from models.signal_gpt.network import SignalGPT, SignalGPTConfig

    config.check_dims()
    return SignalGPT(SignalGPTConfig(**asdict(config)))


def load(folder: str | Path) -> SignalGPT:
    """The network saved in `folder`, in evaluation mode."""
    from models.pretrained import load_checkpoint
    from models.signal_gpt.network import SignalGPT

    return load_checkpoint(SignalGPT, folder)
