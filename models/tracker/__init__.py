"""A transformer that associates the detections of a clip: which instances of different frames are the same animal.

Boxes and crops of T frames become N tokens; encoder and decoder attend over all of them, and the head gives each pair
of instances a logit. 301,312 parameters at the defaults beside the visual encoder.

    model: {name: tracker, encoder_cfg: {model_name: conv}}

Importing this needs neither torch nor transformers; `build` and `load` bring them. Source: the architecture of DREEM
(https://dreem.sleap.ai), which follows GTR (Zhou et al. 2022, arXiv:2203.13250).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.tracker.config import DIMS, Config

if TYPE_CHECKING:
    from models.tracker.network import Tracker

PROCESS_KEYS: frozenset[str] = frozenset({"cache_dir"})

# Part name -> regular expression over parameter and module names.
PARTS: dict[str, str] = {
    "backbone": r"^visual(\.|$)",
    "vision_tower": r"^visual(\.|$)",  # the same, in the words of vision-language models
    "embedding": r"^(to_tokens|embedding|geometry)(\.|$)",
    "encoder": r"^encoder(_norm)?(\.|$)",
    "decoder": r"^decoder(_norm)?(\.|$)",
    "head": r"^head(\.|$)",
}


def build(config: Config, process: Any) -> Tracker:
    """A new network for the data's dims.

    Raises:
        ValueError: a dim is missing, an unknown encoder, or pretrained weights that are not found or do not fit.
    """
    missing = [name for name in DIMS if getattr(config, name) is None]
    if missing:
        raise ValueError(f"model: {', '.join(missing)} missing; the data set's dims must give them")
    from models.tracker.network import build_network

    return build_network(config, process.cache_dir)


def load(folder: str | Path) -> Tracker:
    """The network saved in `folder`, in evaluation mode."""
    from models.pretrained import load_checkpoint
    from models.tracker.network import Tracker

    return load_checkpoint(Tracker, folder)
