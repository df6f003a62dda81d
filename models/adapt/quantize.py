"""Frozen linear weights in 4 or 8 bits, by bitsandbytes: any model, on CUDA and on CPU.

A 4-bit weight is stored as two values a byte, with one scale for each block of 64 (Dettmers et al. 2023,
arXiv:2305.14314); an 8-bit weight with one scale for each row (Dettmers et al. 2022, arXiv:2208.07339).
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.adapt.checks import INSTALL_BITSANDBYTES
from models.adapt.submodules import parameters_in, select


def quantizable(model: nn.Module, parts: Mapping[str, str], trained: set[str]) -> list[str]:
    """Names of the linear layers that may be quantized: none that trains, no output head, no tied weight.

    Args:
        trained: names of the parameters that will be trained.

    Raises:
        ValueError: there are none.
    """
    kept = set(trained)
    if "head" in parts:
        kept |= parameters_in(model, _hits(model, "head", parts))
    holders: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        holders[id(parameter)] = holders.get(id(parameter), 0) + 1
    fused = _read_directly(model)
    found = [
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear
        and name not in fused
        and f"{name}.weight" not in kept
        and f"{name}.bias" not in kept
        and holders[id(module.weight)] == 1
    ]
    if not found:
        raise ValueError(
            "`use_quantization` found no frozen linear weight to quantize; enable LoRA (`lora_enable`), or `freeze` "
            "parts that have linear layers"
        )
    return found


def _hits(model: nn.Module, part: str, parts: Mapping[str, str]) -> list[str]:
    try:
        return select(model, part, parts, "head")
    except ValueError:  # the part belongs to another variant of this model
        return []


def _read_directly(model: nn.Module) -> set[str]:
    """Linear layers whose owner computes with their weights itself, without calling them."""
    owners = [name for name, module in model.named_modules() if isinstance(module, nn.TransformerEncoderLayer)]
    return {name for name, _ in model.named_modules() if any(name.startswith(f"{owner}.") for owner in owners)}


def quantize(model: nn.Module, names: Iterable[str], settings: Mapping[str, Any]) -> None:
    """Replaces the named linear layers, in place.

    Args:
        settings: `bits`, `quant_type`, `double_quant`.

    Raises:
        ValueError: bitsandbytes is missing, or the weights are float64.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(INSTALL_BITSANDBYTES)
    from models.adapt.bnb_layers import EightBitLinear, FourBitLinear

    # It says at every forward of every 8-bit layer that it casts the input to float16, as it always does.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    for name in names:
        linear = model.get_submodule(name)
        if linear.weight.dtype == torch.float64:
            raise ValueError("`use_quantization` cannot start from float64; set `weights_dtype` to null or float32")
        if settings["bits"] == 4:
            layer = FourBitLinear(linear, settings["quant_type"], settings["double_quant"])
        else:
            layer = EightBitLinear(linear)
        # Arriving on its device is what quantizes a weight.
        model.set_submodule(name, layer.train(linear.training).to(linear.weight.device))


def quantized_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> quantized layer."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "plain_dtype")}


def dequantize(model: nn.Module) -> None:
    """Replaces every quantized layer by a plain one with the numbers it stands for, in place."""
    from models.adapt.bnb_layers import plain_weight

    for name, layer in quantized_layers(model).items():
        linear = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        linear.weight = nn.Parameter(plain_weight(layer), requires_grad=False)
        if layer.bias is not None:
            linear.bias = layer.bias
        model.set_submodule(name, linear.train(layer.training))


def plain_state(model: nn.Module, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A model's state with the weights of quantized layers as numbers, under their usual names."""
    layers = quantized_layers(model)
    if not layers:
        return dict(state)
    from models.adapt.bnb_layers import plain_weight

    own = {f"{name}.{key}" for name, layer in layers.items() for key in layer.state_dict() if key != "bias"}
    plain = {name: value for name, value in state.items() if name not in own}
    return plain | {f"{name}.weight": plain_weight(layer) for name, layer in layers.items()}


def packed_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """What is stored for the quantized layers: quantizing numbers once more would not give the same again."""
    layers = quantized_layers(model).items()
    return {
        f"{name}.{key}": value.contiguous()
        for name, layer in layers
        for key, value in layer.state_dict().items()
        if key != "bias"
    }


def restore_packed(model: nn.Module, names: Iterable[str], settings: Mapping[str, Any], file: Path) -> None:
    """Quantized layers in place of the named ones, exactly as `packed_state` saved them."""
    from safetensors.torch import load_file

    from models.adapt.bnb_layers import restore

    quantize(model, names, settings)
    stored = load_file(file)
    for name in names:
        own = {key: value for key, value in stored.items() if key.startswith(f"{name}.")}
        # Copies: what is read here are pages of the file, which may be a checkpoint's that is deleted later.
        own = {key.removeprefix(f"{name}."): value.clone() for key, value in own.items()}
        restore(model.get_submodule(name), own)


def resident_tensors(model: nn.Module) -> Iterable[tuple[str, torch.Tensor]]:
    """Every tensor that the model holds in memory with the name of its owner, quantization constants included."""
    yield from model.named_parameters()
    yield from model.named_buffers()
    layers = quantized_layers(model)
    if layers:
        from models.adapt.bnb_layers import constants

        for name, layer in layers.items():
            yield from ((f"{name}.weight", tensor) for tensor in constants(layer))


def element_count(parameter: torch.Tensor) -> int:
    """Weights that a parameter stands for; a 4-bit one holds two in each byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else state.shape.numel()
