"""Chunks predicted directly, by the networks of the diffusion and flow policies.

Importing this needs neither torch nor transformers; `build` and `load` bring them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.denoising import PARTS as PARTS
from models.regression.config import Config

if TYPE_CHECKING:
    from models.regression.network import Regression

PROCESS_KEYS: frozenset[str] = frozenset({"cache_dir"})


def build(config: Config, process: Any) -> Regression:
    """Build a network for the data's dims; arguments and errors as `models.act.build`."""
    from models.backbone import build_policy
    from models.regression.network import Regression

    return build_policy(Regression, config, process.cache_dir)


def load(folder: str | Path) -> Regression:
    """Load the network saved in `folder`, in evaluation mode."""
    from models.pretrained import load_checkpoint
    from models.regression.network import Regression

    return load_checkpoint(Regression, folder)
