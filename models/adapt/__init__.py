"""Adapt any model: load its weights, quantize, freeze, add LoRA, and report what was done.

Importing this needs neither torch nor transformers nor peft; `build_adapted` and `load_adapted` import them.
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
    """Build the model of a run, load its weights, quantize, freeze and add adapters, as `process` asks.

    Args:
        module: a model component (`models.act` …): `build(config, process)`, `load(folder)`, perhaps `PARTS`.
        config: the module's `Config`, with every dim filled in.
        process: process parameters in which `check` finds no problem.
        autocast: the type that training computes in ("bfloat16", "float16"); None: the weights' own.
        on_gpu: whether the model will run on a GPU. Default: if there is one.

    Raises:
        ValueError: a pattern matches nothing, weights do not fit, or nothing is left to train.
    """
    hide_kernel_warning()
    from models.adapt.build import build

    return build(module, config, process, autocast, on_gpu)


def load_adapted(
    folder: str | Path, module: ModuleType, device: str = "cpu", trust_remote_code: bool = False
) -> nn.Module:
    """Load the model of a saved run or checkpoint, in evaluation mode, with its adapter and quantized as in training.

    Args:
        trust_remote_code: run code that the model or its base brings; what the folder itself says about it is ignored.

    Raises:
        ValueError: the folder or its base model is missing, or weights do not fit, or are pickled.
    """
    hide_kernel_warning()
    from models.adapt.saved_model import load

    return load(Path(folder), module, device, trust_remote_code)
