"""Low-rank adapters by PEFT (Hu et al. 2021, arXiv:2106.09685): which modules get one, and which train whole."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import inspect
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    TaskType,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D
from transformers.utils.hub import cached_file

from models.adapt.checks import words_of
from models.adapt.quantize import quantized_layers
from models.adapt.submodules import PLAIN_WORD, is_inside, parameters_in, select, whole_modules
from models.pretrained import reason

ALL_LINEAR = "all-linear"
ADAPTER, PICKLED_ADAPTER = "adapter_model.safetensors", "adapter_model.bin"
LINEAR = (nn.Linear, Conv1D)
OTHERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
# Fields of LoraConfig that have a key of their own, or that are not a user's.
OWN_KEYS = {
    "r": "lora_r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "bias": "lora_bias",
    "target_modules": "lora_module",
    "task_type": "lora_task_type",
}
NOT_OPTIONS = {"peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"}


class Adapter(PeftModel):
    """A PEFT model whose `forward` takes a batch with any keys: PEFT's classes for tasks know only those of text."""

    def create_or_update_model_card(self, output_dir: str) -> None:
        """Writes none: run.yaml says what a run was, and a README in its folder is the user's."""


@dataclass
class LoraPlan:
    """Modules that get an adapter, modules that are trained and saved whole, and lines about both."""

    adapted: list[str]
    saved: list[str]
    lines: list[str]


def plan(
    model: nn.Module,
    process: Any,
    parts: Mapping[str, str],
    frozen: set[str],
    tuned: set[str],
    new: set[str] | None,
) -> LoraPlan:
    """Chooses modules by `lora_module`; new heads and what `tuned` holds train whole.

    Args:
        frozen, tuned: see `freeze.frozen_and_tuned`.
        new: parameters without pretrained weights; None: all.

    Raises:
        ValueError: a word of `lora_module` matches nothing, or nothing that may be adapted.
    """
    lines: list[str] = []
    saved = _saved_whole(model, process, parts, frozen, tuned, new, lines)
    fixed = frozen | parameters_in(model, saved)
    adapted: dict[str, None] = {}
    for word in words_of(process.lora_module):
        found = [name for name in _candidates(model, word, parts) if not parameters_in(model, [name]) <= fixed]
        if not found:
            raise ValueError(
                f"`lora_module: {word}` matches no layer that can have an adapter: linear layers, convolutions and "
                "embeddings that are neither frozen nor trained whole"
            )
        if process.lora_options.get("use_dora"):
            found = _with_a_direction(model, word, found, lines)
        adapted |= dict.fromkeys(found)
    return LoraPlan(list(adapted), saved, lines)


def _with_a_direction(model: nn.Module, word: str, found: list[str], lines: list[str]) -> list[str]:
    """DoRA divides by the norm of each row of a weight: layers with a row of zeros would only give NaN."""
    modules = dict(model.named_modules())
    kept = [name for name in found if bool(modules[name].weight.flatten(1).any(dim=1).all())]
    left_out = [name for name in found if name not in kept]
    if not kept:
        raise ValueError(
            f"`lora_options: use_dora` divides by the norms of weights, and those of `lora_module: {word}` are zero "
            f"({', '.join(left_out)}); leave one of the two out"
        )
    if left_out:
        lines.append(f"use_dora: {', '.join(left_out)} without an adapter: weights that are zero have no direction")
    return kept


def _candidates(model: nn.Module, word: str, parts: Mapping[str, str]) -> list[str]:
    """The layers that a word of `lora_module` means, those kept fixed included."""
    modules = dict(model.named_modules())
    linear = [name for name, module in modules.items() if _is_linear(module)]
    if word.lower() == ALL_LINEAR:
        heads = parameters_in(model, _heads(model, parts))
        return [name for name in linear if f"{name}.weight" not in heads]
    hits = set(select(model, word, parts, "lora_module"))
    inside = [name for name in modules if name in hits or is_inside(name, hits)]
    named = [] if word in parts or (PLAIN_WORD.fullmatch(word) is None) else [name for name in inside if name in hits]
    direct = [name for name in named if _is_linear(modules[name]) or isinstance(modules[name], OTHERS)]
    if direct:
        return direct
    # Of a whole part or block the linear layers; one without any (a convolutional backbone) is adapted as it is.
    return [name for name in inside if name in set(linear)] or [n for n in inside if isinstance(modules[n], OTHERS)]


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, LINEAR) and not isinstance(module, NonDynamicallyQuantizableLinear)


def _heads(model: nn.Module, parts: Mapping[str, str]) -> list[str]:
    if "head" not in parts:
        return []
    return [name for name, _ in model.named_modules() if name and re.search(parts["head"], name)]


def _saved_whole(
    model: nn.Module,
    process: Any,
    parts: Mapping[str, str],
    frozen: set[str],
    tuned: set[str],
    new: set[str] | None,
    lines: list[str],
) -> list[str]:
    """Modules that train whole beside the adapters: new heads, the projector if asked, and `modules_to_save`."""
    wanted = parameters_in(model, _heads(model, parts)) if new is None else set(new)
    tied = wanted & _tied(model)
    if tied:
        lines.append(f"lora: `{min(tied)}` is tied to the embeddings and stays as it is, as they do")
    wanted = ((wanted - tied) - frozen) | tuned
    for word in words_of(process.lora_options.get("modules_to_save")):
        wanted |= parameters_in(model, select(model, word, parts, "lora_options.modules_to_save"))
    saved, loose = whole_modules(model, wanted)
    if loose:
        lines.append(f"lora: {len(loose)} new weights are no module of their own and stay untrained: {min(loose)} …")
    # PEFT finds modules to save by how their names end.
    also = [
        name
        for name, _ in model.named_modules()
        if any(name.endswith(each) for each in saved) and not is_inside(name, saved)
    ]
    for name in also:
        if parameters_in(model, [name]) & frozen:
            raise ValueError(
                f"`freeze`: `{name}` cannot stay frozen while a module whose name ends alike trains whole under LoRA "
                f"({', '.join(saved)}); leave it out of `freeze`"
            )
        lines.append(f"lora: `{name}` is trained too: PEFT finds modules to train whole by the end of their names")
    return saved + also


def _tied(model: nn.Module) -> set[str]:
    """Parameters that have more than one name."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name for group in names.values() if len(group) > 1 for name in group}


def settings(model: nn.Module, process: Any, chosen: LoraPlan) -> LoraConfig:
    """PEFT's configuration of a new adapter.

    Raises:
        ValueError: an unknown task type or option, or values that PEFT refuses.
    """
    options = _options(process.lora_options)
    types = [each.value for each in TaskType]
    if process.lora_task_type not in types:
        near = difflib.get_close_matches(process.lora_task_type.upper(), types, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"PEFT has {', '.join(types)}"
        raise ValueError(f"`lora_task_type: {process.lora_task_type}` is not a task of PEFT; {hint}")
    if process.lora_task_type != "FEATURE_EXTRACTION" and not reads_text(model):
        chosen.lines.append(f"lora_task_type: {process.lora_task_type} says nothing here: the model reads no input_ids")
    with _one_line("lora_options"):
        return LoraConfig(
            r=process.lora_r,
            lora_alpha=process.lora_alpha,
            lora_dropout=process.lora_dropout,
            bias=process.lora_bias,
            # A task of text would make PEFT's own loader call the model with text's arguments only.
            task_type=process.lora_task_type if reads_text(model) else None,
            target_modules=_as_targets(model, chosen.adapted),
            modules_to_save=chosen.saved or None,
            **options,
        )


def reads_text(model: nn.Module) -> bool:
    return "input_ids" in inspect.signature(model.forward).parameters


def _options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Further fields of LoraConfig, their names checked."""
    known = {item.name for item in dataclasses.fields(LoraConfig) if item.init} - NOT_OPTIONS - OWN_KEYS.keys()
    for name in options:
        if name in OWN_KEYS:
            raise ValueError(f"`lora_options.{name}` has a key of its own: `{OWN_KEYS[name]}`")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(sorted(known))}"
            raise ValueError(f"`lora_options.{name}` is not an option of PEFT's LoraConfig; {hint}")
    return {name: value for name, value in options.items() if name != "modules_to_save"}


def _as_targets(model: nn.Module, names: list[str]) -> list[str] | str:
    """Exactly these modules in PEFT's terms: a list matches ends of names, so where that is too much, a regex."""
    ends = tuple(f".{name}" for name in names)
    wanted = set(names)
    if any(name.endswith(ends) and name not in wanted for name, _ in model.named_modules()):
        return f"({'|'.join(map(re.escape, names))})"
    return names


@contextlib.contextmanager
def _one_line(place: str) -> Iterator[None]:
    """Errors of PEFT as one line that names the key."""
    try:
        yield
    except Exception as error:  # an adapter that somebody else wrote may ask for anything
        raise ValueError(f"`{place}`: PEFT refuses: {' '.join(str(error).split())}") from error


def earlier_settings(path: str, process: Any, chosen: LoraPlan) -> LoraConfig:
    """The configuration of the adapter at `path`, which is the one that counts; keys that say otherwise are errors.

    Raises:
        ValueError: there is no LoRA adapter, or a key that was set differs from it.
    """
    path = os.path.expanduser(path)
    config = _stored_settings(path, f"`lora_weight_path: {path}`", process.cache_dir)
    defaults = {item.name: item.default for item in dataclasses.fields(process)} if _is_dataclass(process) else {}
    for field, key in OWN_KEYS.items():
        if field in ("target_modules", "task_type"):
            continue
        asked, found = getattr(process, key), getattr(config, field)
        if asked != found and asked != defaults.get(key, found):
            raise ValueError(f"`{key}: {asked}` contradicts the adapter at lora_weight_path, which has {found}")
    chosen.lines.append(
        f"lora_weight_path: starts from {path} with its own settings: r {config.r}, alpha {config.lora_alpha:g}, "
        f"dropout {config.lora_dropout:g}, bias {config.bias}, its own modules"
    )
    config.inference_mode = False
    heads = dict.fromkeys([*(config.modules_to_save or ()), *chosen.saved])
    config.modules_to_save = list(heads) or None
    return config


def _stored_settings(folder: str, shown: str, cache_dir: str | None = None) -> LoraConfig:
    """An adapter's own settings.

    Raises:
        ValueError: there are none, they are damaged, or of another kind of adapter.
    """
    try:
        config = PeftConfig.from_pretrained(folder, cache_dir=cache_dir)
    except (OSError, ValueError) as error:
        raise ValueError(f"{shown}: {' '.join(str(error).split())}") from error
    except Exception as error:  # a file that somebody else wrote may hold anything
        raise ValueError(f"{shown}: its adapter_config.json is damaged ({reason(error)})") from error
    if not isinstance(config, LoraConfig):
        raise ValueError(f"{shown} is a {config.peft_type} adapter, not LoRA")
    for name in ("r", "lora_alpha", "lora_dropout"):
        if not isinstance(getattr(config, name), (int, float)):
            raise ValueError(f"{shown}: its adapter_config.json is damaged (`{name}` is {getattr(config, name)!r})")
    return config


def _is_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def wrap(model: nn.Module, config: LoraConfig, place: str) -> Adapter:
    """`model` with an adapter; quantized layers get PEFT's adapters for them."""
    bits = {4 if hasattr(layer, "quant_state") else 8 for layer in quantized_layers(model).values()}
    flags = [f"is_loaded_in_{bit}bit" for bit in bits]
    for flag in flags:
        setattr(model, flag, True)
    try:
        with _one_line(place), warnings.catch_warnings():
            # PEFT asks transformers by an old name; that is between the two of them.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            return Adapter(model, config)
    finally:
        for flag in flags:  # only PEFT asks; transformers would refuse to train or move a model with these
            delattr(model, flag)


def attach(model: nn.Module, folder: Path | str, trainable: bool = False) -> Adapter:
    """`model` with the adapter saved in `folder`."""
    config = _stored_settings(str(folder), str(folder))
    config.inference_mode = not trainable
    adapter = wrap(model, config, str(folder))
    load_weights(adapter, folder)
    return adapter


def load_weights(model: PeftModel, folder: Path | str, may_lack: tuple[str, ...] = ()) -> None:
    """Puts the adapter's weights in `folder` into `model`.

    Args:
        may_lack: modules that train whole and need not be in the folder.

    Raises:
        ValueError: the file is missing, or a weight is missing, unexpected, or of another shape.
    """
    try:
        found = load_file(_weights_file(Path(folder)))
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder}: no adapter weights ({' '.join(str(error).split())})") from error
    own = get_peft_model_state_dict(model, save_embedding_layers=False)
    lacking = [name for name in own if name not in found]
    missing = [name for name in lacking if not any(f"{head}." in name for head in may_lack)]
    wrong = [name for name in found if name not in own or own[name].shape != found[name].shape]
    for names, what in ((missing, "lacks"), (wrong, "holds, in another size or in vain,")):
        if names:
            raise ValueError(
                f"{folder}: the adapter {what} {len(names)} weights, first {names[0]}; it is another model's"
            )
    set_peft_model_state_dict(model, found)


def _weights_file(folder: Path) -> Path:
    """The adapter's weights, in a folder or on the hub. PEFT would read a pickle where there is nothing else."""
    if not folder.is_dir():
        return Path(cached_file(str(folder), ADAPTER))
    if not (folder / ADAPTER).is_file() and (folder / PICKLED_ADAPTER).is_file():
        raise ValueError(
            f"they are a pickle, {PICKLED_ADAPTER}, and reading a pickle can run code; save the adapter again with "
            f"save_pretrained, which writes {ADAPTER}"
        )
    return folder / ADAPTER


def adapted_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> layer with an adapter."""
    return {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
