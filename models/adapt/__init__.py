"""Adapting any model: load its weights, quantize, freeze, add LoRA, and say what came of it.

Importing this needs neither torch nor transformers nor peft; `build_adapted` and `load_adapted` bring them.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from models.adapt.checks import check
from models.adapt.optional_imports import hide_kernel_warning

if TYPE_CHECKING:
    from torch import nn

    from models.adapt.adapted_model import AdaptedModel

__all__ = ["build_adapted", "check", "load_adapted"]


def build_adapted(
    module: ModuleType, config: Any, process: Any, *, autocast: str | None = None, on_gpu: bool | None = None
) -> AdaptedModel:
    """The model of a run: built, its weights loaded, quantized, frozen and given adapters as `process` says.

    Args:
        module: a model component (`models.act` …): `build(config, process)`, `load(folder)`, perhaps `PARTS`.
        config: the module's `Config`, with every dim filled in.
        process: process parameters.
        autocast: the type that training computes in ("bfloat16", "float16"); None: the weights' own.
        on_gpu: whether the model will run on a GPU. Default: if there is one.

    Raises:
        ValueError: a pattern matches nothing, weights do not fit, a package is missing, nothing is left to train.
    """
    hide_kernel_warning()
    from models.adapt.build import build

    return build(module, config, process, autocast, on_gpu)


def load_adapted(
    folder: str | Path, module: ModuleType, device: str = "cpu", trust_remote_code: bool = False
) -> nn.Module:
    """The model of a saved run or checkpoint, in evaluation mode: with its adapter, quantized as it was in training.

    Args:
        trust_remote_code: run code that the model or its base brings; what the folder itself says of that is not heard.

    Raises:
        ValueError: the folder or its base model is missing, or weights do not fit, or are pickled.
    """
    hide_kernel_warning()
    from models.adapt.adapter_io import load

    return load(Path(folder), module, device, trust_remote_code)
