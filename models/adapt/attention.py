"""`flash_attn`: which attention a model computes with."""

from __future__ import annotations

import importlib.util

import torch
from torch import nn

from models.layers import Attention

HALF = ("bfloat16", "float16")
LEAST_CAPABILITY = (8, 0)  # Ampere: flash-attention 2 has no kernels for older GPUs


def choose_attention(
    model: nn.Module, wanted: bool, weights_dtype: str | None, autocast: str | None, on_gpu: bool | None
) -> tuple[str, list[str]]:
    """Sets the model's attention; returns what is really used, and a line where that is not what was wanted."""
    if not wanted:
        return _effective(model), []
    reason = _obstacle(weights_dtype, autocast, on_gpu) or _switch_on(model)
    if reason is None:
        return "flash_attention_2", []
    return _effective(model), [f"flash_attn: {reason}; {_effective(model).upper()} is used"]


def _obstacle(weights_dtype: str | None, autocast: str | None, on_gpu: bool | None) -> str | None:
    """Why flash-attention cannot run here."""
    if importlib.util.find_spec("flash_attn") is None:
        return "flash-attention is not installed (pip install flash-attn)"
    if on_gpu is False or not torch.cuda.is_available():
        return "there is no CUDA GPU"
    capability = torch.cuda.get_device_capability()
    if capability < LEAST_CAPABILITY:
        return f"the GPU's compute capability is {capability[0]}.{capability[1]}, below 8.0"
    if (autocast or weights_dtype) not in HALF:
        return "it computes in bfloat16 or float16 only, and neither bf16, fp16 nor weights_dtype asks for one"
    return None


def _switch_on(model: nn.Module) -> str | None:
    """Turns flash-attention on; why that is not possible, else None."""
    own = [module for module in model.modules() if isinstance(module, Attention)]
    for module in own:
        module.use_flash_attention()
    if own:
        return None
    if not hasattr(model, "set_attn_implementation"):
        return "this model has no attention that could use it"
    try:
        model.set_attn_implementation("flash_attention_2")
    except (ValueError, ImportError, NotImplementedError) as error:
        return f"this model cannot use it ({' '.join(str(error).split())})"
    if model.config._attn_implementation != "flash_attention_2":
        return f"{type(model).__name__} does not support it"
    return None


def _effective(model: nn.Module) -> str:
    if any(isinstance(module, Attention) for module in model.modules()):
        return "sdpa"
    return getattr(getattr(model, "config", None), "_attn_implementation", None) or "sdpa"
