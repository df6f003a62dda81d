"""Load a saved model with what adaptation did to it; `models.adapt.adapted_model` lists its files."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from models.adapt import quantize as quantization
from models.adapt.checks import ADAPTATION, BASE, QUANTIZED
from models.adapt.dtype import cast

TEXTS = ("module", "base", "cache_dir", "weights_dtype")


def read_settings(folder: Path) -> dict[str, Any] | None:
    """Return how the model in `folder` was made; None if it has plain weights and no such file.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / ADAPTATION
    if not path.is_file():
        return None
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        lora, quantized = settings["lora"] or {}, settings["quantization"]
        modules = [
            *lora.get("modules", ()),
            *lora.get("trained_whole", ()),
            *(quantized["modules"] if quantized else ()),
        ]
        if not all(isinstance(settings[key], str | None) for key in TEXTS) or not all(
            isinstance(name, str) for name in modules
        ):
            raise TypeError("a name is not text")
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}); take another checkpoint") from None
    return settings


def refuse_other_module(folder: Path, module: ModuleType) -> None:
    """Raise ValueError if the model in `folder` is of another component of Keel than `module`."""
    settings = read_settings(folder) or {"module": None}
    room, _, name = (settings["module"] or "").rpartition(".")
    # A module that has moved from elsewhere may still read what it wrote.
    if room == module.__name__.rpartition(".")[0] == "models" and settings["module"] != module.__name__:
        raise ValueError(
            f"{folder}: has a {settings.get('architecture')} of model {name!r}, not one of "
            f"{module.__name__.removeprefix('models.')!r}; --set model.name={name} takes it"
        )


def load(folder: Path, module: ModuleType, device: str, trust_remote_code: bool = False) -> nn.Module:
    """See `models.adapt.load_adapted`."""
    settings = read_settings(folder) or {"lora": None, "quantization": None}
    quantized = settings["quantization"]
    if settings["lora"] is not None:
        from models.adapt.lora import attach

        model = attach(_base(folder, module, settings, trust_remote_code), folder)
    else:
        model = _whole(folder, module, trust_remote_code)
        if quantized:
            quantization.restore_packed(model, quantized["modules"], quantized, folder / QUANTIZED)
    return model.to(device).eval()


def plain_model(folder: Path, module: ModuleType, trust_remote_code: bool = False) -> nn.Module:
    """Return the model of a run or checkpoint with plain weights, its adapter merged, in evaluation mode.

    Raises:
        ValueError: as `load`.
    """
    settings = read_settings(folder)
    if settings is None or settings["lora"] is None:
        return _whole(folder, module, trust_remote_code).eval()
    from models.adapt.lora import attach, merged

    model = _base(folder, module, settings, trust_remote_code)
    if settings["quantization"]:  # the adapter was trained with the error of quantization, which is therefore kept
        quantization.dequantize(model)
    _untie(model, {*settings["lora"]["modules"], *settings["lora"]["trained_whole"]})
    return merged(attach(model, folder), folder).eval()


def _whole(folder: Path, module: ModuleType, trust_remote_code: bool) -> nn.Module:
    """Call the component's own `load`; only some components support models that bring code."""
    takes_trust = trust_remote_code and "trust_remote_code" in inspect.signature(module.load).parameters
    return module.load(folder, trust_remote_code=True) if takes_trust else module.load(folder)


def _base(folder: Path, module: ModuleType, settings: dict[str, Any], trust_remote_code: bool) -> nn.Module:
    """Load and quantize the model that an adapter was made for. The caller decides whether its code may run."""
    place = str(folder / BASE) if (folder / BASE).is_dir() else settings["base"]
    if place is None:
        raise ValueError(f"{folder / BASE} is missing: the adapter was made for the weights in it; restore it")
    if hasattr(module, "load_base"):
        model = module.load_base(place, folder, settings["cache_dir"], trust_remote_code)
    else:
        model = module.load(place)
    cast(model, settings["weights_dtype"])
    if quantized := settings["quantization"]:
        quantization.quantize(model, quantized["modules"], quantized)
    return model


def _untie(model: nn.Module, changed: set[str]) -> None:
    """Give the output head weights of its own if only one of it and the embeddings is about to change."""
    head = model.get_output_embeddings()
    embeddings = model.get_input_embeddings() if head is not None else None
    if head is None or getattr(embeddings, "weight", None) is not head.weight:
        return
    if any(name in changed for name, module in model.named_modules() if module is head or module is embeddings):
        head.weight = nn.Parameter(head.weight.detach().clone())
        model.config.tie_word_embeddings = False
        model.config.get_text_config().tie_word_embeddings = False
