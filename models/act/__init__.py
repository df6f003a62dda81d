"""ACT, the action chunking transformer (Zhao et al. 2023, arXiv:2304.13705).

Published, with 50 scripted demonstrations and one camera: about 90 % success on cube transfer and 50 % on
insertion.

    python train.py --task_name sim_transfer_cube_state --model_config configs/model/act.yaml

Importing this needs neither torch nor transformers; `build` and `load` bring them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.act.config import Config

if TYPE_CHECKING:
    from models.act.network import ACT

PROCESS_KEYS: frozenset[str] = frozenset({"cache_dir", "model_name_or_path"})

# Part name -> regular expression over parameter and module names.
PARTS: dict[str, str] = {
    "backbone": r"^backbone(\.|$)",
    "vision_tower": r"^backbone(\.|$)",  # the same part under the name that vision-language models use
    "cvae_encoder": r"^cvae_encoder(\.|$)",
    "projector": r"^(state|env_state|latent|word|image)_projection(\.|$)",
    "encoder": r"^(encoder|token_positions|view_positions)(\.|$)",
    "decoder": r"^(decoder|queries)(\.|$)",
    "head": r"^head(\.|$)",
}


def build(config: Config, process: Any) -> ACT:
    """Build a network for the data's dims, with pretrained backbone weights if `backbone_weights` names some.

    Where `model_name_or_path` is the folder of a LeRobot policy, its weights and settings are taken.

    Args:
        config: with every dim filled in.
        process: process parameters; `cache_dir` is for downloads from a hub (null: the hub's default).

    Raises:
        ValueError: a dim is missing, or the backbone's weights are not found or do not fit.
    """
    from models.act.network import ACT
    from models.backbone import build_policy
    from models.lerobot_weights import starts_from_lerobot

    if starts_from_lerobot(process):
        from models.act import lerobot

        return lerobot.build(config, process)
    return build_policy(ACT, config, process.cache_dir)


def load(folder: str | Path) -> ACT:
    """Load the network saved in `folder`, in evaluation mode."""
    from models.act.network import ACT
    from models.pretrained import load_checkpoint

    return load_checkpoint(ACT, folder)
