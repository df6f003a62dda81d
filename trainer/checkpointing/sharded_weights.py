"""Weights under FSDP2: gathered whole for a file, and read in parts from whole files."""

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

from trainer.distributed.shards import (
    Mismatch,
    folder_read_errors,
    local_shard,
    named_tensors,
    shard_slice_of,
    size_text,
)

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_model.safetensors"


@torch.no_grad()
def whole_weights(model: nn.Module, keep: bool) -> dict[str, torch.Tensor]:
    """Every weight and buffer whole in host memory, gathered one at a time; all processes call it alike.

    Args:
        keep: Whether this process wants them. The others help to gather and return nothing.

    Returns:
        Copies by their names in the model itself; tied weights are one tensor under several names.
    """
    whole: dict[str, torch.Tensor] = {}
    copies: dict[int, torch.Tensor | None] = {}
    for name, each in named_tensors(model).items():
        if id(each) not in copies:
            gathered = each.full_tensor() if hasattr(each, "placements") else each
            copies[id(each)] = gathered.detach().to("cpu", copy=True) if keep else None
        if keep:
            whole[name] = copies[id(each)]
    return whole


@torch.no_grad()
def load_whole_weights(model: nn.Module, folder: Path | str) -> None:
    """Fills the model with the whole weights in a folder, of which each process reads what it holds itself.

    Of a model with a PEFT adapter it is the adapter's weights that are read; the others never change.

    Raises:
        ValueError: the weights are missing or damaged, or another model's.
    """
    folder = Path(folder)
    own = named_tensors(model)
    has_adapter = hasattr(model, "peft_config")
    if has_adapter:
        from peft import get_peft_model_state_dict

        own = get_peft_model_state_dict(model, state_dict=own, save_embedding_layers=False)
    with contextlib.ExitStack() as open_files, folder_read_errors(folder, "the weights", "damaged weights"):
        files = _weight_files(folder, ADAPTER if has_adapter else WEIGHTS, open_files)
        chosen = _matched(own, files)
        for name, each in chosen.items():
            region = shard_slice_of(each)
            if each.dim():
                box = tuple(slice(at, at + n) for at, n in zip(region.offset, region.size, strict=True))
                local_shard(each).copy_(files[name].get_slice(name)[box])
            else:
                each.copy_(files[name].get_tensor(name))


def _weight_files(folder: Path, single: str, open_files: contextlib.ExitStack) -> dict[str, Any]:
    """Weight -> the open file that holds it: one file, or those that an index names."""
    names = {single}
    if single == WEIGHTS and (folder / INDEX).is_file():
        names = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    files: dict[str, Any] = {}
    for name in sorted(names):
        if not re.fullmatch(r"[\w-][\w.-]*\.safetensors", name):
            raise Mismatch(f"has an {INDEX} that names {name!r}, which is no file of its folder")
        if not (folder / name).is_file():
            raise Mismatch(f"has no {name}")
        file = open_files.enter_context(safe_open(folder / name, framework="pt"))
        files |= dict.fromkeys(file.keys(), file)
    return files


def _matched(own: Mapping[str, torch.Tensor], files: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Stored name -> the tensor to fill; of tied weights one name is enough."""
    found = {id(each): name for name, each in own.items() if name in files}
    for name, each in own.items():
        if id(each) not in found:
            raise Mismatch(f"has no weight `{name}`: it is another model's")
    for name in files:
        if name not in own:
            raise Mismatch(f"has a weight `{name}`, which this model has not")
    chosen = {name: own[name] for name in found.values()}
    for name, each in chosen.items():
        stored = files[name].get_slice(name)
        if tuple(stored.get_shape()) != tuple(each.shape):
            raise Mismatch(
                f"has a weight `{name}` of {size_text(stored.get_shape())}, here it is {size_text(each.shape)}"
            )
    return chosen
