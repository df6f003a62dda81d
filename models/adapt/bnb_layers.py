"""bitsandbytes' linear layers, extended to work for any model on any machine."""

from __future__ import annotations

import bitsandbytes as bnb
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily


class FourBitLinear(bnb.nn.Linear4bit):
    """A 4-bit linear layer that keeps its weight in the layout that training needs.

    On CPUs with AVX512-BF16, bitsandbytes (0.50) repacks the weight in the first forward in evaluation mode, does not
    undo this in training, and then computes wrong gradients.
    """

    def __init__(self, linear: nn.Linear, quant_type: str, double_quant: bool):
        options = {"quant_type": quant_type, "compress_statistics": double_quant}
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, **options, device="meta")
        self.plain_dtype = linear.weight.dtype
        self.support_avx512bf16_for_cpu = False
        self.weight = bnb.nn.Params4bit(linear.weight.detach(), requires_grad=False, module=self, **options)
        self.bias = linear.bias


class EightBitLinear(bnb.nn.Linear8bitLt):
    """An 8-bit linear layer for inputs with any number of axes; bitsandbytes' supports two or three."""

    def __init__(self, linear: nn.Linear):
        size = linear.in_features, linear.out_features, linear.bias is not None
        super().__init__(*size, has_fp16_weights=False, device="meta")
        self.plain_dtype = linear.weight.dtype
        self.weight = bnb.nn.Int8Params(linear.weight.detach(), requires_grad=False, has_fp16_weights=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """(…, in features) -> (…, out features)"""
        return super().forward(x.reshape(-1, x.shape[-1])).unflatten(0, x.shape[:-1])


def without_values(linear: nn.Linear, bits: int, quant_type: str, double_quant: bool) -> FourBitLinear | EightBitLinear:
    """Return a quantized layer of fake tensors, from which bitsandbytes cannot make parameters of its own kinds."""
    kind = FourBitLinear if bits == 4 else EightBitLinear
    layer = kind.__new__(kind)
    nn.Module.__init__(layer)
    layer.in_features, layer.out_features, layer.bias = linear.in_features, linear.out_features, linear.bias
    layer.plain_dtype, plain = linear.weight.dtype, linear.weight.detach()
    if bits == 4:
        options = {"quant_type": quant_type, "compress_statistics": double_quant}
        with unset_fake_temporarily():  # or the table of values that bitsandbytes keeps would have none
            bnb.functional.quantize_blockwise(torch.zeros(1))
        packed, state = bnb.functional.quantize_4bit(plain, **options)
        options |= {"quant_state": state, "bnb_quantized": True, "quant_storage": torch.uint8}
        settings = {"compute_dtype": None, "compute_type_is_set": False, "support_avx512bf16_for_cpu": False}
    else:
        packed, scales, _ = bnb.functional.int8_vectorwise_quant(plain.to(torch.float16))
        options = {"CB": packed, "SCB": scales, "has_fp16_weights": False}
        settings = {"state": bnb.MatmulLtState(), "index": None}
        settings["state"].threshold, settings["state"].has_fp16_weights = 0.0, False
    layer.weight = nn.Parameter(packed, requires_grad=False)
    vars(layer.weight).update(options)
    vars(layer).update(settings)
    return layer


def plain_weight(layer: FourBitLinear | EightBitLinear) -> Tensor:
    """Return the weight (out features, in features) as numbers, in the type it had before."""
    if isinstance(layer, FourBitLinear):
        return bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return bnb.functional.int8_vectorwise_dequant(layer.weight.data, scales(layer)).to(layer.plain_dtype)


def scales(layer: EightBitLinear) -> Tensor:
    """Return the largest magnitude of each row (out features,), which the first forward moves from weight to layer."""
    return layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB


def constants(layer: FourBitLinear | EightBitLinear) -> list[Tensor]:
    """Return the tensors that are stored beside the packed weight."""
    if isinstance(layer, EightBitLinear):
        return [scales(layer)]
    state = layer.weight.quant_state
    nested = [state.offset, state.state2.absmax, state.state2.code] if state.nested else []
    return [state.absmax, state.code, *nested]


def restore(layer: FourBitLinear | EightBitLinear, stored: dict[str, torch.Tensor]) -> None:
    """Restore the weight from the tensors of the layer's `state_dict`."""
    weight = stored["weight"]
    if isinstance(layer, FourBitLinear):
        state = {key.removeprefix("weight."): value for key, value in stored.items() if key.startswith("weight.")}
        layer.weight = bnb.nn.Params4bit.from_prequantized(weight, state, device=weight.device, module=layer)
    else:
        layer.weight = bnb.nn.Int8Params(weight, requires_grad=False, CB=weight, SCB=stored["SCB"])
