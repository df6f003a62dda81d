"""Weights under FSDP2: gathered for a file, and read shard by shard from files of whole weights."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from safetensors import safe_open
from torch import nn

from trainer.distributed import Mismatch, local_shard, named_tensors, shard_slice_of, size_text

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_model.safetensors"


@torch.no_grad()
def whole_weights(model: nn.Module, keep: bool) -> dict[str, torch.Tensor]:
    """Return all weights and buffers whole in host memory, gathered one at a time; all ranks must call this.

    Args:
        keep: Whether this rank wants them. Other ranks help to gather and return nothing.

    Returns:
        Copies by their names in the model itself; tied weights are one tensor under several names.
    """
    whole: dict[str, torch.Tensor] = {}
    copies: dict[int, torch.Tensor | None] = {}
    for name, tensor in named_tensors(model).items():
        if id(tensor) not in copies:
            gathered = tensor.full_tensor() if hasattr(tensor, "placements") else tensor
            copies[id(tensor)] = gathered.detach().to("cpu", copy=True) if keep else None
        if keep:
            whole[name] = copies[id(tensor)]
    return whole


@torch.no_grad()
def load_whole_weights(model: nn.Module, folder: Path | str) -> None:
    """Load whole weights from a folder; each rank reads only the rows that it holds.

    Of a model with a PEFT adapter only the adapter's weights are read; the others never change.

    Raises:
        Mismatch: weights are missing, or of another model.
    """
    folder, tensors = Path(folder), named_tensors(model)
    has_adapter = hasattr(model, "peft_config")
    if has_adapter:
        from peft import get_peft_model_state_dict

        tensors = get_peft_model_state_dict(model, state_dict=tensors, save_embedding_layers=False)
    with contextlib.ExitStack() as open_files:
        files = _weight_files(folder, ADAPTER if has_adapter else WEIGHTS, open_files)
        for name, tensor in _matched(tensors, files).items():
            if tensor.dim():
                local_shard(tensor).copy_(files[name].get_slice(name)[shard_slice_of(tensor).index])
            else:
                tensor.copy_(files[name].get_tensor(name))


def _weight_files(folder: Path, single: str, open_files: contextlib.ExitStack) -> dict[str, Any]:
    """Name of each weight -> the open file that holds it: a single file, or those that an index names."""
    names = {single}
    if single == WEIGHTS and (folder / INDEX).is_file():
        names = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    files: dict[str, Any] = {}
    for name in sorted(names):
        if not re.fullmatch(r"[\w-][\w.-]*\.safetensors", name):
            raise Mismatch(f"{INDEX} names {name!r}, which is not a file in its folder")
        if not (folder / name).is_file():
            raise Mismatch(f"{name} is missing")
        file = open_files.enter_context(safe_open(folder / name, framework="pt"))
        files |= dict.fromkeys(file.keys(), file)
    return files


def _matched(tensors: Mapping[str, torch.Tensor], files: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Stored name -> the tensor to fill; of tied weights one name is enough."""
    stored_names = {id(tensor): name for name, tensor in tensors.items() if name in files}
    for name, tensor in tensors.items():
        if id(tensor) not in stored_names:
            raise Mismatch(f"it has no weight `{name}`: it is of another model")
    for name in files:
        if name not in tensors:
            raise Mismatch(f"it has a weight `{name}`, which this model does not have")
    matched = {name: tensors[name] for name in stored_names.values()}
    for name, tensor in matched.items():
        shape = files[name].get_slice(name).get_shape()
        if tuple(shape) != tuple(tensor.shape):
            raise Mismatch(f"its weight `{name}` is {size_text(shape)}, in this run {size_text(tensor.shape)}")
    return matched
