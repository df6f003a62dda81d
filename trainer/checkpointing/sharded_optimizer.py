"""Optimizer state under FSDP2, in one part for each rank. Rank 1 of 2 writes

    optimizer-00002-of-00002.json          groups, and the place of each shard in its whole tensor
    optimizer-00002-of-00002.safetensors   shards `<parameter>/<state>`, e.g. `head.weight/exp_avg`

Any number of ranks, also a single process without FSDP, reads all parts and takes the slices that it holds itself.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from safetensors import safe_open
from torch import nn
from torch.distributed.tensor import DTensor, Replicate, Shard

from trainer.distributed import (
    Mismatch,
    ShardSlice,
    local_shard,
    local_slice,
    named_tensors,
    rank_and_world_size,
    shard_slice_of,
    size_text,
    whole_slice,
)
from trainer.serialization import state_dict_io

PART = re.compile(r"optimizer-(\d{5})-of-(\d{5})\.json")


def part_name(process: int, processes: int) -> str:
    """Return `optimizer-00001-of-00002` for rank 0 of 2."""
    return f"optimizer-{process + 1:05d}-of-{processes:05d}"


def has_parts(folder: Path | str) -> bool:
    """Whether a checkpoint's optimizer state is in parts."""
    return any(PART.fullmatch(path.name) for path in Path(folder).glob("optimizer-*.json"))


def _unwrapped(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer inside accelerate's wrapper, or the optimizer itself."""
    return getattr(optimizer, "optimizer", optimizer)


def _class_name(optimizer: torch.optim.Optimizer) -> str:
    members = getattr(optimizer, "members", ()) or (optimizer,)
    return " + ".join(type(member).__name__ for member in members)


def _group_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    """The names of the parameters of each group, in the optimizer's order."""
    names: dict[int, str] = {}
    for name, tensor in named_tensors(model).items():
        names.setdefault(id(tensor), name)
    return [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]


# ---- writing ----


def local_state(model: nn.Module, optimizer: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return what this rank holds of the optimizer state, without copies and without communication.

    Returns:
        Shards `<parameter>/<state>`, and JSON values: whether the weights are `sharded`; `groups`, their parameters
        with shapes and their options; `tensors`, for each the `shape` of the whole tensor, the `offset` of the shard
        and the dimension along which each axis of the device mesh `cut` it, or `whole`; `values`, state that is not a
        tensor.

    Raises:
        ValueError: state cannot be stored, or is not sharded in rows.
    """
    optimizer = _unwrapped(optimizer)
    state, names = optimizer.state_dict(), _group_names(model, optimizer)
    process, processes = rank_and_world_size()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    tensors: dict[str, torch.Tensor] = {}
    facts: dict[str, Any] = {
        "process": process,
        "processes": processes,
        "optimizer": _class_name(optimizer),
        "sharded": any(hasattr(parameter, "placements") for parameter in parameters),
        "groups": _group_facts(state, names, optimizer),
        "tensors": {},
        "values": {},
    }
    for parameter, key, value in _entries(state, names):
        name = f"{parameter}/{key}"
        if isinstance(value, torch.Tensor):
            tensors[name] = local_shard(value)
            facts["tensors"][name] = _shard_facts(value)
        else:
            facts["values"][name] = _as_json(value, name)
    return tensors, facts


def _entries(state: Mapping[str, Any], names: Sequence[Sequence[str]]) -> Iterator[tuple[str, str, Any]]:
    """(parameter, state, value) of everything in an optimizer's state dict."""
    indices = [index for group in state["param_groups"] for index in group["params"]]
    name_of = dict(zip(indices, [name for group in names for name in group], strict=True))
    for index, values in state["state"].items():
        for key, value in values.items():
            yield name_of[index], key, value


def _shard_facts(value: torch.Tensor) -> dict[str, Any]:
    if not hasattr(value, "placements"):
        return {"whole": True}
    place = shard_slice_of(value)
    assert tuple(local_shard(value).shape) == place.size, "sharded in another way than torch.chunk's"
    cut = [None if placement.is_replicate() else placement.dim for placement in value.placements]
    return {"shape": list(place.shape), "offset": list(place.offset), "cut": cut}


def _group_facts(
    state: Mapping[str, Any], names: Sequence[Sequence[str]], optimizer: torch.optim.Optimizer
) -> list[dict[str, Any]]:
    facts = []
    for group_names, stored, group in zip(names, state["param_groups"], optimizer.param_groups, strict=True):
        options = {name: _number(value) for name, value in stored.items() if name != "params"}
        shapes = {name: list(tensor.shape) for name, tensor in zip(group_names, group["params"], strict=True)}
        facts.append({"parameters": shapes, "options": _as_json(options, "options of a group")})
    return facts


def _number(value: Any) -> Any:
    """The value of a learning rate that is a tensor."""
    return value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value


def _as_json(value: Any, name: str) -> Any:
    try:
        plain, tensors = state_dict_io.split(value)
    except TypeError as error:
        raise ValueError(f"the optimizer's `{name}`: {error}") from error
    if tensors:
        raise ValueError(f"the optimizer's `{name}` is a {type(value).__name__} of tensors; it cannot be sharded")
    return plain


# ---- reading ----


@dataclass
class StoredTensor:
    """One tensor of optimizer state in the files.

    Attributes:
        pieces: Slice of the whole tensor -> open file slice or tensor that holds it.
        cut: Dimension along which each axis of the device mesh cut it; None: it was not sharded.
        unsharded: A tensor that is whole on each rank, as this rank wrote it (rank 0 if there were fewer ranks).
    """

    pieces: dict[ShardSlice, Any] = field(default_factory=dict)
    cut: list[int | None] | None = None
    unsharded: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return next(iter(self.pieces)).shape if self.pieces else tuple(self.unsharded.shape)


@dataclass
class StoredOptimizer:
    """The optimizer state in a checkpoint; `class_name` and shapes are known only if it was written in parts."""

    class_name: str | None
    processes: int
    groups: list[dict[str, Any]]
    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


def load_local_state(model: nn.Module, optimizer: Any, folder: Path | str) -> None:
    """Load this rank's part of a checkpoint's optimizer state, written by any number of ranks, with FSDP2 or without.

    Raises:
        Mismatch: the state is missing or incomplete, or of another model or optimizer. Nothing is changed then.
    """
    folder, optimizer = Path(folder), _unwrapped(optimizer)
    names = _group_names(model, optimizer)
    with contextlib.ExitStack() as open_files:
        stored = _read_parts(folder, open_files) if has_parts(folder) else _read_whole(folder, names)
        _check(stored, names, optimizer)
        optimizer.load_state_dict(_state_dict(stored, names, optimizer))


def _read_parts(folder: Path, open_files: contextlib.ExitStack) -> StoredOptimizer:
    processes, stored = max(int(match[2]) for path in folder.iterdir() if (match := PART.fullmatch(path.name))), None
    for process in range(processes):
        name, file = part_name(process, processes), None
        facts = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        stored = stored or StoredOptimizer(facts["optimizer"], processes, facts["groups"])
        if facts["tensors"]:
            file = open_files.enter_context(safe_open(folder / f"{name}.safetensors", framework="pt"))
        _add_part(stored, facts, file, is_own=process == rank_and_world_size()[0])
    return stored


def _add_part(stored: StoredOptimizer, facts: Mapping[str, Any], file: Any, is_own: bool) -> None:
    for name, place in facts["tensors"].items():
        tensor = stored.tensors.setdefault(name, StoredTensor())
        if "whole" in place:
            if is_own or tensor.unsharded is None:
                tensor.unsharded = file.get_tensor(name)
            if not facts["sharded"]:
                tensor.pieces = {shard_slice_of(tensor.unsharded): tensor.unsharded}
            continue
        source = file.get_slice(name) if place["shape"] else file.get_tensor(name)
        size = tuple(source.get_shape()) if place["shape"] else ()
        piece = ShardSlice(tuple(place["shape"]), tuple(place["offset"]), size)
        tensor.pieces[piece], tensor.cut = source, place["cut"]
    stored.values = {**facts["values"], **stored.values} if not is_own else {**stored.values, **facts["values"]}


def _read_whole(folder: Path, names: Sequence[Sequence[str]]) -> StoredOptimizer:
    """Read optimizer.json and optimizer.safetensors, a state dict that a run without FSDP wrote."""
    state = state_dict_io.read(folder, "optimizer")
    sizes = [len(group["params"]) for group in state["param_groups"]]
    if sizes != [len(group) for group in names]:
        raise Mismatch(f"its optimizer has parameter groups of {sizes} weights: it is of another model")
    groups = []
    for group_names, group in zip(names, state["param_groups"], strict=True):
        options = {name: value for name, value in group.items() if name != "params"}
        groups.append({"parameters": dict.fromkeys(group_names), "options": state_dict_io.split(options)[0]})
    stored = StoredOptimizer(None, 1, groups)
    for parameter, key, value in _entries(state, names):
        if isinstance(value, torch.Tensor):
            stored.tensors[f"{parameter}/{key}"] = StoredTensor({shard_slice_of(value): value}, unsharded=value)
        else:
            stored.values[f"{parameter}/{key}"] = state_dict_io.split(value)[0]
    return stored


def _check(stored: StoredOptimizer, names: Sequence[Sequence[str]], optimizer: torch.optim.Optimizer) -> None:
    if stored.class_name not in (None, _class_name(optimizer)):
        raise Mismatch(f"its optimizer is {stored.class_name}, this run has {_class_name(optimizer)}")
    parameters = _parameters(names, optimizer)
    shapes = {name: shape for group in stored.groups for name, shape in group["parameters"].items()}
    for name in [*parameters, *shapes]:
        if name not in shapes or name not in parameters:
            where = "this run" if name in parameters else "the checkpoint's run"
            raise Mismatch(f"its optimizer is of another model: only {where} trains the weight `{name}`")
        if shapes[name] is not None and tuple(shapes[name]) != tuple(parameters[name].shape):
            sizes = f"{size_text(shapes[name])}, in this run {size_text(parameters[name].shape)}"
            raise Mismatch(f"its optimizer is of another model: the weight `{name}` is {sizes}")
    if [list(group["parameters"]) for group in stored.groups] != [list(group) for group in names]:
        raise Mismatch("its optimizer has other parameter groups; give those that it was trained with")


def _parameters(names: Sequence[Sequence[str]], optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    tensors = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return dict(zip([name for group in names for name in group], tensors, strict=True))


def _state_dict(
    stored: StoredOptimizer, names: Sequence[Sequence[str]], optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """The argument of the optimizer's `load_state_dict`, with this rank's shard of each tensor."""
    numbered = optimizer.state_dict()["param_groups"]
    indices = [index for group in numbered for index in group["params"]]
    parameters = _parameters(names, optimizer)
    index_of = dict(zip(parameters, indices, strict=True))
    is_same_count = stored.processes == rank_and_world_size()[1]
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in stored.tensors.items():
        parameter, _, key = name.rpartition("/")
        value = _local_part(tensor, parameters[parameter], name, is_same_count)
        state.setdefault(index_of[parameter], {})[key] = value
    for name, value in stored.values.items():
        parameter, _, key = name.rpartition("/")
        state.setdefault(index_of[parameter], {})[key] = state_dict_io.join(value, {})
    options = [state_dict_io.join(group["options"], {}) for group in stored.groups]
    groups = [option | {"params": group["params"]} for option, group in zip(options, numbered, strict=True)]
    return {"state": state, "param_groups": groups}


def _local_part(tensor: StoredTensor, parameter: torch.Tensor, name: str, is_same_count: bool) -> torch.Tensor:
    """A state tensor as this rank holds it. `is_same_count`: as many ranks as when it was written."""
    shape = tensor.shape
    if not tensor.pieces:  # each rank had its own, beside its shard of the weight
        if tensor.unsharded.numel() > 1 and not is_same_count:
            raise Mismatch(f"`{name}` cannot be resharded; launch as many processes as before")
        return tensor.unsharded.clone()
    if not hasattr(parameter, "placements"):
        return _assembled(tensor, whole_slice(shape), name)
    mesh, placements = parameter.device_mesh, parameter.placements
    if shape != tuple(parameter.shape):
        if tensor.cut is None and math.prod(shape) == 1:
            return tensor.unsharded.clone()
        if tensor.cut is None or len(tensor.cut) != mesh.ndim:
            raise Mismatch(f"`{name}` does not have the shape of its weight and cannot be sharded")
        placements = [Replicate() if dim is None else Shard(dim) for dim in tensor.cut]
    part = _assembled(tensor, local_slice(shape, mesh, placements), name).to(parameter.device)
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride)


def _assembled(tensor: StoredTensor, wanted: ShardSlice, name: str) -> torch.Tensor:
    """A slice of a tensor, from the pieces that overlap it; nothing else is read."""
    if wanted.shape == ():
        return next(iter(tensor.pieces.values())).clone()
    result, filled = None, 0
    for piece, source in tensor.pieces.items():
        first = [max(pair) for pair in zip(piece.offset, wanted.offset, strict=True)]
        ends = zip(first, piece.offset, piece.size, wanted.offset, wanted.size, strict=True)
        last = [max(start, min(at + length, goal + size)) for start, at, length, goal, size in ends]
        if result is not None and any(start >= end for start, end in zip(first, last, strict=True)):
            continue
        overlap = list(zip(first, last, strict=True))
        source_index = tuple(slice(a - at, b - at) for (a, b), at in zip(overlap, piece.offset, strict=True))
        index = tuple(slice(a - at, b - at) for (a, b), at in zip(overlap, wanted.offset, strict=True))
        values = source[source_index]
        result = torch.empty(wanted.size, dtype=values.dtype) if result is None else result
        if values.numel():
            result[index] = values
            filled += values.numel()
    if result is None or filled != result.numel():
        raise Mismatch(f"parts of `{name}` are missing")
    return result
