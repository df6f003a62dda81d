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

# Derived from the model once it is there.
PARTS: dict[str, str] = {}


def build(config: Config, process: Any) -> PreTrainedModel:
    """A new model, or the pretrained one at `process.model_name_or_path`.

    With `is_pretrained` or `load_pretrain` the path gives an architecture at most; its weights are loaded by
    `models.adapt`.

    Raises:
        ValueError: neither `config` nor a path, an unknown model type or field, nothing found at the path, data with
            more tokens than the pretrained model knows, or inputs longer than its table of positions.
    """
    from models.auto.network import build_network

    return build_network(config, process)


def load(folder: str | Path, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model saved in `folder`, in evaluation mode; never looks at a hub."""
    from models.auto.network import load_saved

    return load_saved(Path(folder), trust_remote_code)


def load_base(place: str, folder: Path, cache_dir: str | None, trust_remote_code: bool) -> PreTrainedModel:
    """The model at `place`, as the class and with the configuration that the adapter in `folder` was trained with."""
    from models.auto.network import load_for_adapter

    return load_for_adapter(place, folder, cache_dir, trust_remote_code)
