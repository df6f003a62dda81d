"""A GPT: the decoder-only transformer of GPT-2 (Radford et al. 2019), from scratch or from GPT-2's weights.

Options give it rotary positions, RMS norms, SwiGLU, norms of queries and keys, and grouped queries.

    python train.py --dataset shakespeare_char --model_config configs/model/gpt.yaml

Importing this needs neither torch nor transformers; `build` and `load` bring them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.gpt.config import Config

if TYPE_CHECKING:
    from models.gpt.network import GPT

PROCESS_KEYS: frozenset[str] = frozenset({"model_name_or_path", "cache_dir"})

# Part name -> regular expression over parameter and module names. A tied head is the token embedding itself.
PARTS: dict[str, str] = {
    "llm": r"^(token_embedding|position_embedding|blocks|norm)(\.|$)",
    "backbone": r"^(token_embedding|position_embedding|blocks|norm)(\.|$)",
    "embeddings": r"^(token_embedding|position_embedding)(\.|$)",
    "head": r"^head(\.|$)",
}


def build(config: Config, process: Any) -> GPT:
    """Build a network for the data's dims, with GPT-2's weights if `process.model_name_or_path` names them.

    With `is_pretrained` or `load_pretrain` the path is a checkpoint of Keel: sizes that the configuration leaves open
    are taken from it, and `models.adapt` loads its weights.

    Args:
        config: with the data's dims filled in.
        process: process parameters; `cache_dir` is for downloads from a hub (null: the hub's default).

    Raises:
        ValueError: a dim is missing, or the pretrained model is not found or does not fit.
    """
    from models.gpt.start import build_network

    return build_network(config, process)


def load(folder: str | Path) -> GPT:
    """Load the network saved in `folder`, in evaluation mode."""
    from models.gpt.network import GPT
    from models.pretrained import load_checkpoint

    return load_checkpoint(GPT, folder)


def load_base(place: str, folder: Path, cache_dir: str | None, trust_remote_code: bool) -> GPT:
    """Load the network at `place` (GPT-2's or Keel's) for which the adapter in `folder` was trained."""
    from models.gpt.start import load_for_adapter

    return load_for_adapter(place, folder, cache_dir)
