"""Low-rank adapters by PEFT (Hu et al. 2021, arXiv:2106.09685): choose their modules, add, load and save them."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
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

from models.adapt.quantize import quantized_layers
from models.adapt.submodules import (
    PLAIN_WORD,
    is_inside,
    names_in_part,
    parameters_in,
    part_named,
    select,
    tied_parameters,
    whole_modules,
)
from models.pretrained import one_line, reason
from storage.suggestions import did_you_mean

ALL_LINEAR = "all-linear"
ADAPTER, PICKLED_ADAPTER = "adapter_model.safetensors", "adapter_model.bin"
LINEAR = (nn.Linear, Conv1D)
OTHERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
# Fields of LoraConfig with a process parameter of their own.
NUMBERS = {"r": "lora_r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout", "bias": "lora_bias"}
OWN_KEYS = {**NUMBERS, "target_modules": "lora_module", "task_type": "lora_task_type"}
# `init_lora_weights` that need activations or gradients of training data, before the adapter is made.
FROM_DATA = ("eva", "corda", "lora_ga")
RANDOM_PISSA = "pissa_niter_"  # a decomposition of the base weights that is drawn at random
NOT_OPTIONS = {"peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"}


class Adapter(PeftModel):
    """A PEFT model whose `forward` takes a batch with any keys; PEFT's classes for tasks know only those of text."""

    def create_or_update_model_card(self, output_dir: str) -> None:
        """Write no README: run.yaml describes the run, and a README in its folder is the user's."""


class LoraPlan:
    """Choose the modules of a new adapter.

    Args:
        model: the network, not yet wrapped.
        parts: part name -> regular expression over its names.
        frozen: names of parameters that stay fixed.

    Attributes:
        saved: modules that are trained and saved completely.
        adapted: modules that get an adapter.
        lines: what the user should know about both.
    """

    def __init__(self, model: nn.Module, parts: Mapping[str, str], frozen: set[str]):
        self.model, self.parts, self.frozen = model, parts, frozen
        self.saved: list[str] = []
        self.adapted: list[str] = []
        self.lines: list[str] = []

    def train_whole(self, new: set[str] | None, tuned: set[str], words: Iterable[str]) -> None:
        """Choose the modules to train completely.

        Args:
            new: parameters without pretrained weights; None: all, of which the head is trained.
            tuned: parameters that train by request (`tune_mm_mlp_adapter`).
            words: PEFT's `modules_to_save`.
        """
        model, lines = self.model, self.lines
        wanted = self._head() if new is None else new
        tied = wanted & tied_parameters(model)
        if tied:
            lines.append(f"lora: `{min(tied)}` is tied to the embeddings and stays fixed with them")
        wanted = ((wanted - tied) - self.frozen) | tuned
        for word in words:
            wanted |= parameters_in(model, select(model, word, self.parts, "lora_options.modules_to_save"))
        whole, loose = whole_modules(model, wanted)
        if loose:
            lines.append(f"lora: {len(loose)} new weights belong to no module and stay untrained: {min(loose)} …")
        names = [
            name for name, _ in model.named_modules() if name.endswith(tuple(whole)) and not is_inside(name, whole)
        ]
        for name in names:
            if parameters_in(model, [name]) & self.frozen:
                raise ValueError(
                    f"`freeze`: `{name}` cannot stay frozen while LoRA trains {', '.join(whole)} completely: PEFT "
                    "finds modules to train by the end of their names; remove it from `freeze`"
                )
            lines.append(f"lora: `{name}` is trained too: PEFT finds modules to train by the end of their names")
        self.saved = whole + names

    def adapt(self, words: Iterable[str], with_dora: bool) -> None:
        """Choose the modules that get an adapter, by the words of `lora_module`.

        Raises:
            ValueError: a word matches nothing, or nothing that may be adapted.
        """
        fixed = self.frozen | parameters_in(self.model, self.saved)
        for word in words:
            names = [name for name in self._candidates(word) if not parameters_in(self.model, [name]) <= fixed]
            if not names:
                raise ValueError(
                    f"`lora_module: {word}` matches no layer that can have an adapter: linear layers, convolutions and "
                    "embeddings that are neither frozen nor trained completely"
                )
            self.adapted += self._nonzero(word, names) if with_dora else names
        self.adapted = list(dict.fromkeys(self.adapted))

    def _candidates(self, word: str) -> list[str]:
        """Return the layers that a word of `lora_module` selects, including those kept fixed."""
        linear = [name for name, layer in self.model.named_modules() if _is_linear(layer)]
        if word.lower() == ALL_LINEAR:
            head = self._head()
            return [name for name in linear if f"{name}.weight" not in head]
        selected = set(select(self.model, word, self.parts, "lora_module"))
        layers = [name for name, layer in self.model.named_modules() if _is_linear(layer) or isinstance(layer, OTHERS)]
        is_module_name = part_named(word, self.parts) is None and PLAIN_WORD.fullmatch(word)
        if is_module_name and not selected.isdisjoint(layers):
            return [name for name in layers if name in selected]
        # Of a part or block the linear layers; one without any (a convolutional backbone) is adapted as it is.
        inside = [name for name in layers if is_inside(name, selected)]
        return [name for name in inside if name in set(linear)] or inside

    def _head(self) -> set[str]:
        return parameters_in(self.model, names_in_part(self.model, "head", self.parts))

    def _nonzero(self, word: str, names: list[str]) -> list[str]:
        """Leave out layers with a row of zeros: DoRA divides by the norm of each row, and would give NaN."""
        modules = dict(self.model.named_modules())
        kept = [name for name in names if bool(modules[name].weight.flatten(1).any(dim=1).all())]
        zero = ", ".join(name for name in names if name not in kept)
        if not kept:
            raise ValueError(
                f"`lora_options: use_dora` divides by the norms of weights, and those of `lora_module: {word}` are "
                f"zero ({zero}); leave one of the two out"
            )
        if zero:
            self.lines.append(f"use_dora: {zero} without an adapter: weights that are zero have no direction")
        return kept

    def new_config(self, numbers: Mapping[str, Any], task_type: str, options: Mapping[str, Any]) -> LoraConfig:
        """Return PEFT's configuration of the adapter.

        Args:
            numbers: the fields in `NUMBERS`.
            task_type: PEFT's task type.
            options: further fields of LoraConfig.

        Raises:
            ValueError: an unknown task type or option, or values that PEFT refuses.
        """
        types = [kind.value for kind in TaskType]
        if task_type not in types:
            hint = did_you_mean(task_type.upper(), types, f"; PEFT has {', '.join(types)}")
            raise ValueError(f"`lora_task_type: {task_type}` is not a task of PEFT{hint}")
        known = {item.name for item in dataclasses.fields(LoraConfig) if item.init} - NOT_OPTIONS - OWN_KEYS.keys()
        for name in options:
            if name in OWN_KEYS:
                raise ValueError(f"`lora_options.{name}` has a key of its own: `{OWN_KEYS[name]}`")
            if name not in known:
                hint = did_you_mean(name, known, f"; there are {', '.join(sorted(known))}")
                raise ValueError(f"`lora_options.{name}` is not an option of PEFT's LoraConfig{hint}")
        first = str(options.get("init_lora_weights"))
        if first.lower() in FROM_DATA:
            raise ValueError(
                f"`lora_options.init_lora_weights: {first}` begins from activations of training data, which is not "
                "available; pissa and olora begin from the weights alone"
            )
        if first.startswith(RANDOM_PISSA):
            self.lines.append(
                f"init_lora_weights: {first}: PEFT without Keel loads another adapter; for others export with --merge"
            )
        reads_text = "input_ids" in inspect.signature(self.model.forward).parameters
        if task_type != "FEATURE_EXTRACTION" and not reads_text:
            self.lines.append(f"lora_task_type: {task_type} has no effect: the model reads no input_ids")
        with _one_line("lora_options"):
            return LoraConfig(
                **numbers,
                # With a task of text, PEFT's own loader would call the model with text's arguments only.
                task_type=task_type if reads_text else None,
                target_modules=self._targets(),
                modules_to_save=self.saved or None,
                **{name: value for name, value in options.items() if name != "modules_to_save"},
            )

    def _targets(self) -> list[str] | str:
        """Return `adapted` in PEFT's terms: a list matches ends of names; if that would be too many, a regex."""
        ends = tuple(f".{name}" for name in self.adapted)
        if any(name.endswith(ends) and name not in self.adapted for name, _ in self.model.named_modules()):
            return f"({'|'.join(map(re.escape, self.adapted))})"
        return self.adapted

    def earlier_config(self, path: str, cache_dir: str | None, given: Mapping[str, Any]) -> LoraConfig:
        """Return the configuration of the adapter at `path`, from which the new one starts.

        Args:
            cache_dir: for an adapter on a hub.
            given: fields in `NUMBERS` that the user set.

        Raises:
            ValueError: there is no LoRA adapter, or it contradicts `given`.
        """
        config = _stored_config(path, f"`lora_weight_path: {path}`", cache_dir)
        for name, value in given.items():
            if value != getattr(config, name):
                raise ValueError(
                    f"`{NUMBERS[name]}: {value}` contradicts the adapter at lora_weight_path, which has "
                    f"{getattr(config, name)}; leave it out"
                )
        self.lines.append(
            f"lora_weight_path: starts from {path} with its settings: r {config.r}, alpha {config.lora_alpha}, dropout "
            f"{config.lora_dropout}, bias {config.bias}, and its modules"
        )
        config.inference_mode = False
        config.modules_to_save = list(dict.fromkeys([*(config.modules_to_save or ()), *self.saved])) or None
        return config


def _is_linear(layer: nn.Module) -> bool:
    return isinstance(layer, LINEAR) and not isinstance(layer, NonDynamicallyQuantizableLinear)


@contextlib.contextmanager
def _one_line(place: str) -> Iterator[None]:
    """Turn any error of PEFT into one line that names the key."""
    try:
        yield
    except Exception as error:  # an adapter that somebody else wrote may ask for anything
        raise ValueError(f"`{place}`: PEFT refuses: {one_line(error)}") from error


def _stored_config(folder: str, shown: str, cache_dir: str | None = None) -> LoraConfig:
    """Return the configuration of a saved adapter.

    Raises:
        ValueError: there is none, it is damaged, or of another kind of adapter.
    """
    try:
        config = PeftConfig.from_pretrained(folder, cache_dir=cache_dir)
    except Exception as error:  # a file that somebody else wrote may hold anything
        raise ValueError(f"{shown}: it has no sound adapter_config.json ({reason(error)})") from error
    if not isinstance(config, LoraConfig):
        raise ValueError(f"{shown} is a {config.peft_type} adapter, not LoRA")
    return config


def wrap(model: nn.Module, config: LoraConfig, place: str) -> Adapter:
    """Return `model` with an adapter; quantized layers get PEFT's adapters for them."""
    bits = {4 if hasattr(layer, "quant_state") else 8 for layer in quantized_layers(model).values()}
    flags = [f"is_loaded_in_{bit}bit" for bit in bits]
    for flag in flags:
        setattr(model, flag, True)
    try:
        with _one_line(place), warnings.catch_warnings():
            # PEFT asks transformers by an old name; the user can do nothing about it.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            if not str(config.init_lora_weights).startswith(RANDOM_PISSA):
                return Adapter(model, config)
            # The first adapter is subtracted from the base weights: loading the model must draw the same one.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                return Adapter(model, config)
    finally:
        for flag in flags:  # only PEFT asks; transformers would refuse to train or move a model with these
            delattr(model, flag)


def attach(model: nn.Module, folder: Path) -> Adapter:
    """Return `model` with the adapter saved in `folder`, for inference."""
    config = _stored_config(str(folder), str(folder))
    config.inference_mode = True
    adapter = wrap(model, config, str(folder))
    load_weights(adapter, folder)
    return adapter


def merged(adapter: Adapter, folder: Path) -> nn.Module:
    """Return the model inside an adapter that was loaded from `folder`, with the adapter's updates in its weights.

    Raises:
        ValueError: the adapter cannot be merged.
    """
    if adapter.peft_config["default"].layer_replication:  # PEFT would merge the updates of all copies into one weight
        raise ValueError(f"{folder}: `layer_replication` gives one weight several updates; it cannot be merged")
    with _one_line(str(folder)):
        return adapter.merge_and_unload(safe_merge=True)


def load_weights(model: PeftModel, folder: Path, may_lack: Iterable[str] = ()) -> None:
    """Load the adapter's weights in `folder` into `model`.

    Args:
        may_lack: modules that train completely and need not be in the folder.

    Raises:
        ValueError: the file is missing, or a weight is missing, unexpected, or of another shape.
    """
    try:
        stored = load_file(_weights_file(folder))
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder}: no adapter weights ({one_line(error)})") from error
    wanted = get_peft_model_state_dict(model, save_embedding_layers=False)
    lacking = [name for name in wanted if name not in stored]
    missing = [name for name in lacking if not any(f"{head}." in name for head in may_lack)]
    wrong = [name for name in stored if name not in wanted or wanted[name].shape != stored[name].shape]
    for names, problem in ((missing, "lacks"), (wrong, "has, unexpected or of another shape,")):
        if names:
            raise ValueError(
                f"{folder}: the adapter {problem} {len(names)} weights, first {names[0]}; it is of another model"
            )
    set_peft_model_state_dict(model, stored)


def _weights_file(folder: Path) -> Path:
    """Return the file of an adapter's weights, in a folder or on the hub; PEFT would also read a pickle."""
    if not folder.is_dir():
        return Path(cached_file(str(folder), ADAPTER))
    if not (folder / ADAPTER).is_file() and (folder / PICKLED_ADAPTER).is_file():
        raise ValueError(
            f"they are a pickle, {PICKLED_ADAPTER}, and reading a pickle can run code; save the adapter again with "
            f"save_pretrained, which writes {ADAPTER}"
        )
    return folder / ADAPTER


def adapted_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers with an adapter, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
