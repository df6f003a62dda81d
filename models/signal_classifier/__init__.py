"""A classifier of signals of any length: a convolutional stem, a transformer encoder, a mean over time.

    python train.py --training_config motions_cpu --set dataset.path=X_TRAIN.ts dataset.test_path=X_TEST.ts

Importing this needs neither torch nor transformers; `build` and `load` bring them.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.signal_classifier.config import Config

if TYPE_CHECKING:
    from models.signal_classifier.network import SignalClassifier

TAKES_SOFT_LABELS = True  # labels may be shares of classes, as MixUp makes them
PROCESS_KEYS: frozenset[str] = frozenset()

# Part name -> regular expression over parameter and module names.
PARTS: dict[str, str] = {
    "backbone": r"^(stem|encoder)(\.|$)",
    "head": r"^head(\.|$)",
}


def build(config: Config, process: Any) -> SignalClassifier:
    """A new network for the data's dims.

    Raises:
        ValueError: a dim is missing.
    """
    from models.signal_classifier.network import SignalClassifier, SignalClassifierConfig

    if missing := [name for name in ("channels", "classes") if getattr(config, name) is None]:
        raise ValueError(f"model: {', '.join(missing)} missing; signal_classifier needs data with `target: class`")
    return SignalClassifier(SignalClassifierConfig(**asdict(config)))


def load(folder: str | Path) -> SignalClassifier:
    """The network saved in `folder`, in evaluation mode."""
    from models.pretrained import load_checkpoint
    from models.signal_classifier.network import SignalClassifier

    return load_checkpoint(SignalClassifier, folder)
