"""Convert the weights of a model to another floating-point type."""

from __future__ import annotations

import torch
from torch import nn


def cast(model: nn.Module, weights_dtype: str | None) -> None:
    """Convert all floating-point weights to `weights_dtype`, in place; None leaves them as they are.

    Buffers that are not saved (the frequencies of rotary positions) keep their type: they are computed, not learned,
    and a loaded model has them in full precision.
    """
    if weights_dtype is None:
        return
    dtype, saved_names = getattr(torch, weights_dtype), model.state_dict().keys()
    buffers = [buffer for name, buffer in model.named_buffers() if name in saved_names]
    for tensor in [*model.parameters(), *buffers]:
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    if hasattr(model, "config"):
        model.config.dtype = dtype
