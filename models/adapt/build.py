"""load -> cast -> quantize -> freeze -> LoRA -> parameter groups, in this order, for any model."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from models.adapt import quantize as quantization
from models.adapt.adapted_model import AdaptedModel
from models.adapt.adapted_state import Group, Record
from models.adapt.attention import choose_attention
from models.adapt.checks import INSTALL_PEFT
from models.adapt.dtype import cast
from models.adapt.freeze import freeze, frozen_and_tuned, refuse_all_frozen
from models.adapt.initial_weights import InitialModel, first_weights
from models.adapt.submodules import parameters_in, parts_of, peft_parts

ADAPTER_WEIGHTS = r"\.lora_"


def build(module: ModuleType, config: Any, process: Any, autocast: str | None, on_gpu: bool | None) -> AdaptedModel:
    """See `models.adapt.build_adapted`."""
    source = first_weights(module, config, process)
    model, lines = source.model, source.lines
    attention, line = choose_attention(model, process.flash_attn, process.weights_dtype, autocast, on_gpu)
    lines += line
    cast(model, process.weights_dtype)
    parts = parts_of(model, getattr(module, "PARTS", None))
    frozen, tuned = frozen_and_tuned(model, process, parts)
    record = Record(module.__name__, type(model).__name__, source.place, process, attention, lines)
    if process.lora_enable:
        return _with_lora(source, record, parts, frozen, tuned)
    if process.use_quantization:
        trained = {name for name, each in model.named_parameters() if each.requires_grad} - frozen | tuned
        _quantize(model, record, parts, trained)
    freeze(model, frozen, tuned)
    refuse_all_frozen(model)
    return AdaptedModel(model, parts, [], record)


def _with_lora(
    source: InitialModel, record: Record, parts: dict[str, str], frozen: set[str], tuned: set[str]
) -> AdaptedModel:
    if importlib.util.find_spec("peft") is None:
        raise ValueError(INSTALL_PEFT)
    from models.adapt import lora

    model, process = source.model, record.process
    chosen = lora.plan(model, process, parts, frozen, tuned, source.new)
    earlier = process.lora_weight_path
    config = lora.earlier_settings(earlier, process, chosen) if earlier else lora.settings(model, process, chosen)
    record.lines += chosen.lines
    base = _keep_base(model) if source.place is None else None
    if process.use_quantization:
        heads = tuple(config.modules_to_save or ())
        whole = [name for name, _ in model.named_modules() if name and heads and name.endswith(heads)]
        _quantize(model, record, parts, parameters_in(model, whole))
    adapter = lora.wrap(model, config, f"lora_weight_path: {earlier}" if earlier else "lora_enable")
    if earlier:
        lora.load_weights(adapter, os.path.expanduser(earlier), may_lack=tuple(chosen.saved))
        _check_modules(adapter, process, chosen)
    _refreeze(adapter, frozen)
    groups = [Group(ADAPTER_WEIGHTS, process.lora_lr)] if process.lora_lr is not None else []
    return AdaptedModel(adapter, peft_parts(parts), groups, record, base)


def _check_modules(adapter: nn.Module, process: Any, chosen: Any) -> None:
    """`lora_module`, where set, must be what the earlier adapter adapts."""
    from models.adapt.lora import ALL_LINEAR, adapted_modules
    from models.adapt.submodules import base_name

    has = {base_name(name) for name in adapted_modules(adapter)}
    if process.lora_module != ALL_LINEAR and has != set(chosen.adapted):
        raise ValueError(
            f"`lora_module: {process.lora_module}` means other modules than the adapter at lora_weight_path adapts "
            f"(first difference: {min(has ^ set(chosen.adapted))}); leave lora_module at {ALL_LINEAR}"
        )


def _refreeze(adapter: nn.Module, frozen: set[str]) -> None:
    """`lora_bias` trains biases; those of frozen parts stay frozen."""
    from models.adapt.submodules import base_name

    for name, parameter in adapter.named_parameters():
        if "lora_" not in name and base_name(name) in frozen:
            parameter.requires_grad = False


def _quantize(model: nn.Module, record: Record, parts: dict[str, str], trained: set[str]) -> None:
    process = record.process
    if process.bits == 16:
        raise ValueError("`use_quantization` with `bits: 16` quantizes nothing; set `bits` to 4 or 8")
    names = quantization.quantizable(model, parts, trained)
    settings = {"bits": process.bits, "quant_type": process.quant_type, "double_quant": process.double_quant}
    quantization.quantize(model, names, settings)
    record.quantization = {**settings, "modules": names}


def _sweep_bases() -> None:
    """Removes the bases of processes that were killed before they could."""
    for left in Path(tempfile.gettempdir()).glob("keel-base-*-*"):
        owner = left.name.split("-")[2]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists() and Path("/proc/self").exists():
            shutil.rmtree(left, ignore_errors=True)


def _keep_base(model: nn.Module) -> tempfile.TemporaryDirectory | None:
    """The model as it is now, in a folder of its own: an adapter means nothing without these very weights.

    Written before they are quantized. One process of each machine writes it, the one that also saves checkpoints.
    """
    if int(os.environ.get("LOCAL_RANK", "0")) != 0:
        return None
    _sweep_bases()
    folder = tempfile.TemporaryDirectory(prefix=f"keel-base-{os.getpid()}-")
    model.save_pretrained(folder.name)
    return folder
