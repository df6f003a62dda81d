"""Quantize frozen linear weights to 4 or 8 bits by bitsandbytes: any model, on CUDA and on CPU.

A 4-bit weight is stored as two values per byte, with one scale per block of 64 (Dettmers et al. 2023,
arXiv:2305.14314); an 8-bit weight with one scale per row (Dettmers et al. 2022, arXiv:2208.07339).
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from models.adapt.checks import INSTALL_BITSANDBYTES
from models.adapt.submodules import is_inside, names_in_part, parameters_in, tied_parameters


def quantizable(model: nn.Module, parts: Mapping[str, str], trained: set[str]) -> list[str]:
    """Return the names of the linear layers that may be quantized: none that trains, no output head, no tied weight.

    Args:
        trained: names of the parameters that will be trained.

    Raises:
        ValueError: there are none.
    """
    plain = trained | parameters_in(model, names_in_part(model, "head", parts)) | tied_parameters(model)
    # torch's layer computes with the weights of its linear layers itself, without calling them.
    fused = {name for name, module in model.named_modules() if isinstance(module, nn.TransformerEncoderLayer)}
    names = [
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear
        and plain.isdisjoint((f"{name}.weight", f"{name}.bias"))
        and not is_inside(name, fused)
    ]
    if not names:
        raise ValueError(
            "`use_quantization` found no frozen linear weight to quantize; enable LoRA (`lora_enable`), or `freeze` "
            "parts that have linear layers"
        )
    return names


def quantize(model: nn.Module, names: Iterable[str], settings: Mapping[str, Any]) -> None:
    """Replace the named linear layers by quantized ones, in place.

    Args:
        settings: `bits`, `quant_type`, `double_quant`.

    Raises:
        ValueError: bitsandbytes is missing.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(INSTALL_BITSANDBYTES)
    from models.adapt.bnb_layers import EightBitLinear, FourBitLinear, without_values

    # It warns at every forward of every 8-bit layer that it casts the input to float16, as it always does.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    for name in names:
        linear = model.get_submodule(name)
        if isinstance(linear.weight, FakeTensor):
            layer = without_values(linear, settings["bits"], settings["quant_type"], settings["double_quant"])
        elif settings["bits"] == 4:
            layer = FourBitLinear(linear, settings["quant_type"], settings["double_quant"])
        else:
            layer = EightBitLinear(linear)
        # Moving a weight to its device quantizes it.
        model.set_submodule(name, layer.train(linear.training).to(linear.weight.device))


def quantized_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the quantized layers, by name."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "plain_dtype")}


def dequantize(model: nn.Module) -> None:
    """Replace every quantized layer by a plain one with the same numbers, in place."""
    from models.adapt.bnb_layers import plain_weight

    for name, layer in quantized_layers(model).items():
        linear = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        linear.weight = nn.Parameter(plain_weight(layer), requires_grad=False)
        if layer.bias is not None:
            linear.bias = layer.bias
        model.set_submodule(name, linear.train(layer.training))


def plain_state(model: nn.Module, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a model's state with the weights of quantized layers as numbers, under their usual names."""
    from models.adapt.bnb_layers import plain_weight

    packed = packed_state(model).keys()
    plain = {f"{name}.weight": plain_weight(layer) for name, layer in quantized_layers(model).items()}
    return {name: value for name, value in state.items() if name not in packed} | plain


def packed_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return what is stored for the quantized layers; quantizing their numbers again would not give the same."""
    layers = quantized_layers(model).items()
    return {
        f"{name}.{key}": value.contiguous()
        for name, layer in layers
        for key, value in layer.state_dict().items()
        if key != "bias"
    }


def restore_packed(model: nn.Module, names: Iterable[str], settings: Mapping[str, Any], file: Path) -> None:
    """Replace the named layers by quantized ones, exactly as `packed_state` saved them."""
    from safetensors.torch import load_file

    from models.adapt.bnb_layers import restore

    quantize(model, names, settings)
    stored = load_file(file)
    for name in names:
        prefix = f"{name}."
        # Copies: the tensors are pages of the file, which may be in a checkpoint that is deleted later.
        own = {key.removeprefix(prefix): value.clone() for key, value in stored.items() if key.startswith(prefix)}
        restore(model.get_submodule(name), own)


def resident_tensors(model: nn.Module) -> Iterable[tuple[str, torch.Tensor]]:
    """Yield every tensor that the model has in memory with the name of its owner, including quantization constants."""
    yield from model.named_parameters()
    yield from model.named_buffers()
    layers = quantized_layers(model)
    if layers:
        from models.adapt.bnb_layers import constants

        for name, layer in layers.items():
            yield from ((f"{name}.weight", tensor) for tensor in constants(layer))


def element_count(parameter: torch.Tensor) -> int:
    """Return the number of weights of a parameter; a 4-bit one has two in each byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else state.shape.numel()
