"""Diffusion Policy: a network removes noise from a chunk of actions (Chi et al. 2023, arXiv:2303.04137).

Importing this needs neither torch nor transformers; `build` and `load` bring them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.denoising import PARTS as PARTS
from models.diffusion.config import Config

if TYPE_CHECKING:
    from models.diffusion.network import Diffusion

PROCESS_KEYS: frozenset[str] = frozenset({"cache_dir", "model_name_or_path"})


def build(config: Config, process: Any) -> Diffusion:
    """Build a network for the data's dims; arguments and errors as `models.act.build`."""
    from models.backbone import build_policy
    from models.diffusion.network import Diffusion, make_scheduler
    from models.lerobot_weights import starts_from_lerobot

    make_scheduler(config)  # without diffusers the run ends here
    if starts_from_lerobot(process):
        from models.diffusion import lerobot

        return lerobot.build(config, process)
    return build_policy(Diffusion, config, process.cache_dir)


def load(folder: str | Path) -> Diffusion:
    """Load the network saved in `folder`, in evaluation mode."""
    from models.diffusion.network import Diffusion
    from models.pretrained import load_checkpoint

    return load_checkpoint(Diffusion, folder)
