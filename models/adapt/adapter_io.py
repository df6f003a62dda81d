"""The files of an adapted model, and the way back from them.

adaptation.json        how the model was made, and what adaptation did to it
config.json            the model's own configuration
model.safetensors      its weights, where it has no adapter; what was quantized is written as plain numbers
quantized.safetensors  beside it, those weights as they were stored
adapter_*              an adapter, in PEFT's own format
base/                  the model that the adapter was made for, where nothing else would give it again
"""

from __future__ import annotations

import copy
import inspect
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from models.adapt import quantize as quantization
from models.adapt.adapted_state import AdaptedState
from models.adapt.checks import ADAPTATION, BASE, QUANTIZED
from models.adapt.dtype import cast
from models.pretrained import from_files


def settings_of(adapted: AdaptedState) -> dict[str, Any]:
    """What loading needs to know."""
    record, process = adapted.record, adapted.record.process
    lora = None
    if adapted.has_adapter:
        from models.adapt.lora import adapted_modules
        from models.adapt.submodules import base_name

        config = adapted.model.peft_config["default"]
        modules = [base_name(name) for name in adapted_modules(adapted.model)]
        whole = sorted(config.modules_to_save or ())
        lora = {"r": config.r, "alpha": config.lora_alpha, "modules": modules, "trained_whole": whole}
    return {
        "module": record.module,
        "architecture": record.architecture,
        "base": _absolute(record.place),
        "cache_dir": process.cache_dir,
        "trust_remote_code": process.trust_remote_code,
        "weights_dtype": process.weights_dtype,
        "quantization": record.quantization,
        "lora": lora,
    }


def _absolute(place: str | None) -> str | None:
    """A folder or file is found again from anywhere; a hub id stays what it is."""
    return str(Path(place).absolute()) if place is not None and os.path.exists(place) else place


# ---- saving ----


def save(adapted: AdaptedState, folder: Path, state: Mapping[str, torch.Tensor] | None, final: Path) -> None:
    """See `AdaptedState.save`."""
    folder.mkdir(parents=True, exist_ok=True)
    model = adapted.model
    if adapted.has_adapter:
        _save_base(adapted, folder, final)
        model.save_pretrained(str(folder), state_dict=state, save_embedding_layers=False)
        base = model.get_base_model()
        base.config.architectures = [type(base).__name__]
        base.config.save_pretrained(folder)
    elif adapted.record.quantization:
        from safetensors.torch import save_file

        plain = quantization.plain_state(model, state if state is not None else model.state_dict())
        model.save_pretrained(str(folder), state_dict=plain)
        save_file(quantization.packed_state(model), folder / QUANTIZED)
    else:
        model.save_pretrained(str(folder), state_dict=state)
    text = json.dumps(adapted.report(adapted.rates), indent=1, default=str)
    (folder / ADAPTATION).write_text(text + "\n", encoding="utf-8")


def _save_base(adapted: AdaptedState, folder: Path, final: Path) -> None:
    """Notes where the adapter's base is; one that exists nowhere else is put beside the adapter."""
    config = adapted.model.peft_config["default"]
    config.base_model_name_or_path = _absolute(adapted.record.place)
    if adapted.base_folder is None:
        return
    target = folder / BASE
    # PEFT knows no path relative to the adapter. Our own loaders look beside it, so the folder may be moved.
    config.base_model_name_or_path = str((final / BASE).absolute())
    if not (target / "config.json").is_file():
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(_nearest_base(adapted), target, copy_function=_link_or_copy)
    adapted.base_copy = final / BASE


def _nearest_base(adapted: AdaptedState) -> Path:
    """The base as the last checkpoint holds it, where links cost nothing; rotated away, as it was first written."""
    copy_is_whole = adapted.base_copy is not None and (adapted.base_copy / "config.json").is_file()
    return adapted.base_copy if copy_is_whole else Path(adapted.base_folder.name)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copy2(source, target)


# ---- loading ----


def read_settings(folder: Path) -> dict[str, Any] | None:
    """`settings_of` the model saved in `folder`; None: it holds plain weights and nothing was noted.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / ADAPTATION
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        for part, lists in (("lora", ("modules", "trained_whole")), ("quantization", ("modules",))):
            for key in lists if found[part] is not None else ():
                if not all(isinstance(name, str) for name in found[part][key]):
                    raise TypeError(f"{part}.{key} is no list of names")
        if not all(isinstance(found[key], str | None) for key in ("module", "base", "cache_dir", "weights_dtype")):
            raise TypeError("a name is not text")
        return {key: found[key] for key in ("module", "base", "cache_dir", "weights_dtype", "quantization", "lora")}
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}); take another checkpoint") from None


def refuse_other_module(folder: Path, module: ModuleType) -> None:
    """Raises ValueError where the model in `folder` is of another component of ours than `module`."""
    path = folder / ADAPTATION
    if not path.is_file() or read_settings(folder)["module"] == module.__name__:
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    room, _, before = found["module"].rpartition(".")
    if (room, module.__name__.rpartition(".")[0]) != ("models", "models"):
        return  # a module that has moved may still read what it wrote
    now = module.__name__.removeprefix("models.")
    raise ValueError(
        f"{folder}: holds a {found.get('architecture')} of model {before!r}, not one of {now!r}; "
        f"--set model.name={before} takes it"
    )


def load(folder: Path, module: ModuleType, device: str, trust_remote_code: bool = False) -> nn.Module:
    """See `models.adapt.load_adapted`."""
    info = read_settings(folder)
    if info is None or (info["lora"] is None and info["quantization"] is None):
        return _whole(folder, module, trust_remote_code).to(device).eval()
    settings = info["quantization"]
    if info["lora"] is None:
        model = _whole(folder, module, trust_remote_code)
        quantization.restore_packed(model, settings["modules"], settings, folder / QUANTIZED)
    else:
        from models.adapt.lora import attach

        model = _base(folder, module, info, trust_remote_code)
        if settings:
            quantization.quantize(model, settings["modules"], settings)
        model = attach(model, folder)
    return model.to(device).eval()


def _whole(folder: Path, module: ModuleType, trust_remote_code: bool) -> nn.Module:
    """The component's own `load`; only some components know models that bring code."""
    takes_trust = trust_remote_code and "trust_remote_code" in inspect.signature(module.load).parameters
    return module.load(folder, trust_remote_code=True) if takes_trust else module.load(folder)


def plain_model(folder: Path, module: ModuleType, trust_remote_code: bool = False) -> nn.Module:
    """The model of a run or checkpoint with plain weights: its adapter merged, nothing quantized; evaluation mode.

    Raises:
        ValueError: as `load`.
    """
    info = read_settings(folder)
    if info is None or info["lora"] is None:
        return _whole(folder, module, trust_remote_code).eval()
    from models.adapt.lora import attach

    model, settings = _base(folder, module, info, trust_remote_code), info["quantization"]
    if settings:  # the adapter was trained around the error of quantization, which is therefore kept
        quantization.quantize(model, settings["modules"], settings)
        quantization.dequantize(model)
    _untie(model, {*info["lora"]["modules"], *info["lora"]["trained_whole"]})
    return attach(model, folder).merge_and_unload(safe_merge=True).eval()


def _base(folder: Path, module: ModuleType, info: Mapping[str, Any], trust_remote_code: bool) -> nn.Module:
    """The model that an adapter was made for. Whether its code may run is the caller's word, never the folder's own."""
    place = str(folder / BASE) if (folder / BASE).is_dir() else info["base"]
    if place is None:
        raise ValueError(f"{folder / BASE} is missing: the adapter was made for the weights in it; restore it")
    if hasattr(module, "load_base"):
        model = module.load_base(place, folder, info["cache_dir"], trust_remote_code)
    else:
        model = module.load(place)
    cast(model, info["weights_dtype"])
    return model


def _untie(model: nn.Module, changed: set[str]) -> None:
    """Gives the output head weights of its own, where only one of it and the embeddings is about to change."""
    head = model.get_output_embeddings()
    embeddings = model.get_input_embeddings() if head is not None else None
    if head is None or getattr(embeddings, "weight", None) is not head.weight:
        return
    if any(name in changed for name, module in model.named_modules() if module is head or module is embeddings):
        head.weight = nn.Parameter(head.weight.detach().clone())
        model.config.tie_word_embeddings = False
        model.config.get_text_config().tie_word_embeddings = False


def resume(adapted: AdaptedState, folder: Path) -> None:
    """See `AdaptedState.load`."""
    if adapted.has_adapter:
        from models.adapt.lora import load_weights

        _refuse_other_base(adapted, folder)
        load_weights(adapted.model, folder)
        return
    model = adapted.model
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: holds no config.json; resume from a finished checkpoint")
    stored, found = from_files(
        type(model),
        folder,
        str(folder),
        config=copy.deepcopy(model.config),
        local_files_only=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    wrong = [*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"]), *found["unexpected_keys"]]
    if wrong:
        raise ValueError(
            f"{folder}: {len(wrong)} weights are missing, unexpected or of another shape, first {min(wrong)}; "
            "resume with the model that wrote it"
        )
    packed = quantization.packed_state(model).keys()
    weights = {name: value for name, value in stored.state_dict().items() if name not in packed}
    model.load_state_dict(weights, strict=False)


def _refuse_other_base(adapted: AdaptedState, folder: Path) -> None:
    """An adapter on other random weights (another seed) would be another model."""
    if adapted.base_folder is None or not (folder / BASE).is_dir():
        return
    from safetensors.torch import load_file

    for file in sorted((folder / BASE).glob("*.safetensors")):
        mine = Path(adapted.base_folder.name) / file.name
        stored, own = load_file(file), load_file(mine) if mine.is_file() else {}
        for name, value in stored.items():
            if name not in own or not torch.equal(value, own[name]):
                raise ValueError(
                    f"{folder / BASE}: the adapter was trained on other base weights than this run's, first {name}; "
                    "resume with the same `seed`, `model_name_or_path` and model settings"
                )
