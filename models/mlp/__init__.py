"""The baseline: a perceptron from the state (and pooled image features) to a chunk of actions.

Importing this needs neither torch nor transformers; `build` and `load` bring them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.mlp.config import Config

if TYPE_CHECKING:
    from models.mlp.network import MLP

PROCESS_KEYS: frozenset[str] = frozenset({"cache_dir"})

# Part name -> regular expression over parameter and module names.
PARTS: dict[str, str] = {
    "backbone": r"^backbone(\.|$)",
    "vision_tower": r"^backbone(\.|$)",  # the same part under the name that vision-language models use
    "trunk": r"^trunk(\.|$)",
    "head": r"^head(\.|$)",
}


def build(config: Config, process: Any) -> MLP:
    """Build a network for the data's dims; arguments and errors as `models.act.build`."""
    from models.backbone import build_policy
    from models.mlp.network import MLP

    return build_policy(MLP, config, process.cache_dir)


def load(folder: str | Path) -> MLP:
    """Load the network saved in `folder`, in evaluation mode."""
    from models.mlp.network import MLP
    from models.pretrained import load_checkpoint

    return load_checkpoint(MLP, folder)
