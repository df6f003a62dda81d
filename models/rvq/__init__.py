"""A learned tokenizer of signals: a convolutional autoencoder whose code is quantised in several stages.

Each stage quantises what the stages before it have left (residual vector quantisation: Zeghidour et al. 2021,
arXiv:2107.03312, section III.C). Trained on `target: values`; then `dataset.tokenizer: FOLDER` names its folder.

Importing this needs neither torch nor transformers; `build` and `load` bring them.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.rvq.config import Config

if TYPE_CHECKING:
    from models.rvq.network import RVQ

PROCESS_KEYS: frozenset[str] = frozenset()

# Part name -> regular expression over parameter and module names.
PARTS: dict[str, str] = {
    "backbone": r"^(encoder|decoder)(\.|$)",
    "head": r"^quantiser(\.|$)",
}


def build(config: Config, process: Any) -> RVQ:
    """A new network.

    Raises:
        ValueError: the data has no values, or its windows are not a whole number of frames.
    """
    from models.rvq.network import RVQ, RVQConfig

    if config.target not in (None, "values"):
        raise ValueError(
            f"model rvq learns from values, the data has dataset.target: {config.target}; set it to values"
        )
    if config.context is not None and config.context % config.hop:
        raise ValueError(
            f"windows of {config.context} samples are not a multiple of {config.hop}, the product of model.strides; "
            "change dataset.window or the strides"
        )
    return RVQ(RVQConfig(**asdict(config)))


def load(folder: str | Path) -> RVQ:
    """The network saved in `folder`, in evaluation mode."""
    from models.pretrained import load_checkpoint
    from models.rvq.network import RVQ

    return load_checkpoint(RVQ, folder)
