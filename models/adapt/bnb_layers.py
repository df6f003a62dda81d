"""bitsandbytes' linear layers, with what they lack for any model on any machine."""

from __future__ import annotations

import bitsandbytes as bnb
import torch
from torch import Tensor, nn


class FourBitLinear(bnb.nn.Linear4bit):
    """Keeps its weight in the layout that training needs.

    On CPUs with AVX512-BF16 bitsandbytes (0.50) repacks the weight in the first forward in evaluation mode, never
    undoes it in training, and then computes wrong gradients.
    """

    def __init__(self, linear: nn.Linear, quant_type: str, double_quant: bool):
        options = {"quant_type": quant_type, "compress_statistics": double_quant}
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, **options, device="meta")
        self.plain_dtype = linear.weight.dtype
        self.support_avx512bf16_for_cpu = False
        self.weight = bnb.nn.Params4bit(linear.weight.detach(), requires_grad=False, module=self, **options)
        self.bias = linear.bias


class EightBitLinear(bnb.nn.Linear8bitLt):
    """Takes inputs of any number of axes; bitsandbytes' own takes two or three."""

    def __init__(self, linear: nn.Linear):
        size = linear.in_features, linear.out_features, linear.bias is not None
        super().__init__(*size, has_fp16_weights=False, device="meta")
        self.plain_dtype = linear.weight.dtype
        self.weight = bnb.nn.Int8Params(linear.weight.detach(), requires_grad=False, has_fp16_weights=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """(…, in features) -> (…, out features)"""
        return super().forward(x.reshape(-1, x.shape[-1])).unflatten(0, x.shape[:-1])


def plain_weight(layer: FourBitLinear | EightBitLinear) -> Tensor:
    """The weight (out features, in features) as numbers, in the type it had before."""
    if isinstance(layer, FourBitLinear):
        return bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return bnb.functional.int8_vectorwise_dequant(layer.weight.data, scales(layer)).to(layer.plain_dtype)


def scales(layer: EightBitLinear) -> Tensor:
    """(out features,): the largest size of each row; the first forward moves them from the weight to the layer."""
    return layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB


def constants(layer: FourBitLinear | EightBitLinear) -> list[Tensor]:
    """What is stored beside the packed weight."""
    if isinstance(layer, EightBitLinear):
        return [scales(layer)]
    state = layer.weight.quant_state
    nested = [state.offset, state.state2.absmax, state.state2.code] if state.nested else []
    return [state.absmax, state.code, *nested]


def restore(layer: FourBitLinear | EightBitLinear, stored: dict[str, torch.Tensor]) -> None:
    """Puts back the weight that the layer's own `state_dict` gave."""
    weight = stored["weight"]
    if isinstance(layer, FourBitLinear):
        state = {key.removeprefix("weight."): value for key, value in stored.items() if key.startswith("weight.")}
        layer.weight = bnb.nn.Params4bit.from_prequantized(weight, state, device=weight.device, module=layer)
    else:
        layer.weight = bnb.nn.Int8Params(weight, requires_grad=False, CB=weight, SCB=stored["SCB"])
