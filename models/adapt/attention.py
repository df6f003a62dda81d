"""Choose the attention implementation of a model (`flash_attn`)."""

from __future__ import annotations

import importlib.util

import torch
from torch import nn

from models.layers import Attention
from models.pretrained import one_line

HALF = ("bfloat16", "float16")
LEAST_CAPABILITY = (8, 0)  # Ampere: flash-attention 2 has no kernels for older GPUs


def choose_attention(
    model: nn.Module, wanted: bool, compute_dtype: str | None, on_gpu: bool | None
) -> tuple[str, list[str]]:
    """Set the model's attention; return what is really used, and a line if that is not what was wanted."""
    obstacle = (_obstacle(compute_dtype, on_gpu) or _switch_on(model)) if wanted else None
    if wanted and obstacle is None:
        return "flash_attention_2", []
    if any(isinstance(module, Attention) for module in model.modules()):
        used = "sdpa"
    else:
        used = getattr(getattr(model, "config", None), "_attn_implementation", None) or "sdpa"
    return used, [f"flash_attn: {obstacle}; {used.upper()} is used"] if wanted else []


def _obstacle(compute_dtype: str | None, on_gpu: bool | None) -> str | None:
    """Return why flash-attention cannot run here, or None."""
    if importlib.util.find_spec("flash_attn") is None:
        return "flash-attention is not installed (pip install flash-attn)"
    if on_gpu is False or not torch.cuda.is_available():
        return "there is no CUDA GPU"
    capability = torch.cuda.get_device_capability()
    if capability < LEAST_CAPABILITY:
        return f"the GPU's compute capability is {capability[0]}.{capability[1]}, below 8.0"
    if compute_dtype not in HALF:
        return "it computes in bfloat16 or float16 only, and neither bf16, fp16 nor weights_dtype asks for one"
    return None


def _switch_on(model: nn.Module) -> str | None:
    """Turn flash-attention on; return why that is not possible, or None."""
    attention = [module for module in model.modules() if isinstance(module, Attention)]
    for module in attention:
        module.use_flash_attention()
    if attention:
        return None
    if not hasattr(model, "set_attn_implementation"):
        return "this model has no attention that could use it"
    try:
        model.set_attn_implementation("flash_attention_2")
    except (ValueError, ImportError, NotImplementedError) as error:
        return f"this model cannot use it ({one_line(error)})"
    if model.config._attn_implementation != "flash_attention_2":
        return f"{type(model).__name__} does not support it"
    return None
