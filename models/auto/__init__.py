"""Any model of transformers: `AutoModelFor…` by hub id, folder or .gguf file, or new from a configuration.

    model: {name: auto, task: causal_lm}                        with model_name_or_path: a hub id, a folder or a .gguf
    model: {name: auto, task: causal_lm, config: {model_type: llama, hidden_size: 64, num_hidden_layers: 2}}

Importing this needs neither torch nor transformers; `build` and `load` bring them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.auto.config import Config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROCESS_KEYS: frozenset[str] = frozenset({"model_name_or_path", "cache_dir", "trust_remote_code"})

# Derived from the model when it has been built.
PARTS: dict[str, str] = {}


def build(config: Config, process: Any) -> PreTrainedModel:
    """Build a new model, or load the pretrained one at `process.model_name_or_path`.

    With `is_pretrained` or `load_pretrain` only the architecture is read from the path; `models.adapt` loads its
    weights.

    Raises:
        ValueError: neither `config` nor a path, an unknown model type or field, nothing found at the path, data with
            more tokens than the pretrained model knows, or inputs longer than its table of positions.
    """
    from models.auto.network import build_network

    return build_network(config, process)


def load(folder: str | Path, trust_remote_code: bool = False) -> PreTrainedModel:
    """Load the model saved in `folder`, in evaluation mode, without access to a hub."""
    from models.auto.network import load_saved

    return load_saved(Path(folder), trust_remote_code)


def load_base(place: str, folder: Path, cache_dir: str | None, trust_remote_code: bool) -> PreTrainedModel:
    """Load the model at `place`, with the class and configuration with which the adapter in `folder` was trained."""
    from models.auto.network import load_for_adapter

    return load_for_adapter(place, folder, cache_dir, trust_remote_code)
