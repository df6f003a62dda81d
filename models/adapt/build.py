"""Build and adapt any model: load, cast, quantize, freeze, LoRA, parameter groups, in this order."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from models.adapt import quantize as quantization
from models.adapt.adapted_model import AdaptedModel, Group
from models.adapt.attention import choose_attention
from models.adapt.checks import check_network, words_of
from models.adapt.dtype import cast
from models.adapt.freeze import freeze, frozen_and_tuned
from models.adapt.initial_weights import first_weights
from models.adapt.submodules import base_name, parameters_in, parts_of, peft_parts

ADAPTER_WEIGHTS = r"\.lora_"


def build(module: ModuleType, config: Any, process: Any, autocast: str | None, on_gpu: bool | None) -> AdaptedModel:
    """See `models.adapt.build_adapted`."""
    model = first_weights(module, config, process)
    check_network(model, module)
    attention, lines = choose_attention(model, process.flash_attn, autocast or process.weights_dtype, on_gpu)
    cast(model, process.weights_dtype)
    parts = parts_of(model, getattr(module, "PARTS", None))
    adapted = AdaptedModel(
        model,
        parts,
        module=module.__name__,
        place=getattr(model, "loaded_from", None),
        cache_dir=process.cache_dir,
        weights_dtype=process.weights_dtype,
        attention=attention,
        lines=[*getattr(model, "notes", ()), *lines],
    )
    frozen, tuned = frozen_and_tuned(model, process, parts)
    if process.lora_enable:
        _add_lora(adapted, process, frozen, tuned)
        return adapted
    if process.use_quantization:
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad} - frozen | tuned
        adapted.quantization = _quantize(adapted, process, trained)
    freeze(model, frozen, tuned)
    return adapted


def _add_lora(adapted: AdaptedModel, process: Any, frozen: set[str], tuned: set[str]) -> None:
    """Quantize the model if asked to, and wrap it with an adapter."""
    from models.adapt import lora

    model, earlier, options = adapted.model, process.lora_weight_path, process.lora_options
    plan = lora.LoraPlan(model, adapted.parts, frozen)
    plan.train_whole(getattr(model, "new_weights", None), tuned, words_of(options.get("modules_to_save")))
    plan.adapt(words_of(process.lora_module), with_dora=bool(options.get("use_dora")))
    numbers = {name: getattr(process, key) for name, key in lora.NUMBERS.items()}
    if earlier:
        defaults = {item.name: item.default for item in fields(process)}
        given = {name: value for name, value in numbers.items() if value != defaults[lora.NUMBERS[name]]}
        lora_config = plan.earlier_config(os.path.expanduser(earlier), process.cache_dir, given)
    else:
        lora_config = plan.new_config(numbers, process.lora_task_type, options)
    adapted.lines += plan.lines
    if adapted.place is None:
        adapted.base_folder = _keep_base(model)
    if process.use_quantization:
        heads = tuple(lora_config.modules_to_save or ())
        whole = [name for name, _ in model.named_modules() if name.endswith(heads)]
        adapted.quantization = _quantize(adapted, process, parameters_in(model, whole))
    adapter = lora.wrap(model, lora_config, f"lora_weight_path: {earlier}" if earlier else "lora_enable")
    if earlier:
        lora.load_weights(adapter, Path(os.path.expanduser(earlier)), may_lack=plan.saved)
        has = {base_name(name) for name in lora.adapted_modules(adapter)}
        if process.lora_module != lora.ALL_LINEAR and has != set(plan.adapted):
            raise ValueError(
                f"`lora_module: {process.lora_module}` selects other modules than the adapter at lora_weight_path has "
                f"(first difference: {min(has ^ set(plan.adapted))}); leave lora_module at {lora.ALL_LINEAR}"
            )
    for name, parameter in adapter.named_parameters():  # `lora_bias` trains biases; those of frozen parts stay frozen
        if "lora_" not in name and base_name(name) in frozen:
            parameter.requires_grad = False
    adapted.model, adapted.parts = adapter, peft_parts(adapted.parts)
    if process.lora_lr is not None:
        adapted.groups.append(Group(ADAPTER_WEIGHTS, process.lora_lr))


def _quantize(adapted: AdaptedModel, process: Any, trained: set[str]) -> dict[str, Any]:
    """Quantize what does not train; return the settings and the names of the quantized layers."""
    names = quantization.quantizable(adapted.model, adapted.parts, trained)
    settings = {"bits": process.bits, "quant_type": process.quant_type, "double_quant": process.double_quant}
    quantization.quantize(adapted.model, names, settings)
    return {**settings, "modules": names}


def _keep_base(model: nn.Module) -> tempfile.TemporaryDirectory | None:
    """Save the model, before it is quantized, in a temporary folder: an adapter is useless without these very weights.

    One process of each machine does so, the one that also saves checkpoints.
    """
    if int(os.environ.get("LOCAL_RANK", "0")) != 0 or isinstance(next(model.parameters()), FakeTensor):
        return None  # of fake tensors there are no values to save
    # Remove the folders of processes that were killed before they could.
    for folder in Path(tempfile.gettempdir()).glob("keel-base-*-*"):
        owner = folder.name.split("-")[2]
        if owner.isdigit() and Path("/proc/self").exists() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(folder, ignore_errors=True)
    folder = tempfile.TemporaryDirectory(prefix=f"keel-base-{os.getpid()}-")
    model.save_pretrained(folder.name)
    return folder
