"""Flow matching: a network leads noise to a chunk of actions in a few Euler steps (arXiv:2210.02747, 2410.24164).

Importing this needs neither torch nor transformers; `build` and `load` bring them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.denoising import PARTS as PARTS
from models.flow.config import Config

if TYPE_CHECKING:
    from models.flow.network import Flow

PROCESS_KEYS: frozenset[str] = frozenset({"cache_dir"})


def build(config: Config, process: Any) -> Flow:
    """Build a network for the data's dims; arguments and errors as `models.act.build`."""
    from models.backbone import build_policy
    from models.flow.network import Flow

    return build_policy(Flow, config, process.cache_dir)


def load(folder: str | Path) -> Flow:
    """Load the network saved in `folder`, in evaluation mode."""
    from models.flow.network import Flow
    from models.pretrained import load_checkpoint

    return load_checkpoint(Flow, folder)
