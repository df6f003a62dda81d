"""The optimizer's state under FSDP2, in one part for each process. Process 1 of 2 writes

    optimizer-00001-of-00002.json          names, groups, and where each tensor lies in the whole one
    optimizer-00001-of-00002.safetensors   tensors `<parameter>/<state>`, e.g. `head.weight/exp_avg`

and any number of processes, also a single one without FSDP, reads all parts and takes what it holds itself.
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

from trainer.distributed.shards import (
    Mismatch,
    ShardSlice,
    folder_read_errors,
    local_shard,
    local_slice,
    named_tensors,
    rank_and_world_size,
    shard_slice_of,
    size_text,
)
from trainer.serialization import state_dict_io

FORMAT = 1
PART = re.compile(r"optimizer-(\d{5})-of-(\d{5})\.json")


def part_name(process: int, processes: int) -> str:
    """`optimizer-00001-of-00002` for the first of two processes, which is number 0."""
    return f"optimizer-{process + 1:05d}-of-{processes:05d}"


def has_parts(folder: Path | str) -> bool:
    """Whether a checkpoint's optimizer state is in parts."""
    return any(PART.fullmatch(path.name) for path in Path(folder).glob("optimizer-*.json"))


def _bare(optimizer: Any) -> torch.optim.Optimizer:
    """What accelerate's wrapper holds, or the optimizer itself."""
    return getattr(optimizer, "optimizer", optimizer)


def _kind(optimizer: torch.optim.Optimizer) -> str:
    members = getattr(optimizer, "members", ())
    return " + ".join(type(each).__name__ for each in members or (optimizer,))


def _group_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    """The names of the parameters of each group, in the optimizer's order."""
    names: dict[int, str] = {}
    for name, each in named_tensors(model).items():
        names.setdefault(id(each), name)
    try:
        return [[names[id(each)] for each in group["params"]] for group in optimizer.param_groups]
    except KeyError:
        raise ValueError("the optimizer trains tensors that are no parameters of the model") from None


# ---- the optimizer's state, written ----


def local_state(model: nn.Module, optimizer: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What this process holds of the optimizer's state; no copies, and no process waits for another.

    Returns:
        Tensors `<parameter>/<state>`, and as JSON values: whether the weights are `sharded`; `groups`, their parameters
        with shapes and their options; `tensors`, of each the `shape` of the whole one, the `offset` of this part and
        the dimension along which each axis of the processes' mesh `cut` it, or `whole`; `values`, state that is no
        tensor.

    Raises:
        ValueError: state that no file can hold, or that is spread over processes otherwise than in rows.
    """
    bare = _bare(optimizer)
    stored, groups = bare.state_dict(), _group_names(model, bare)
    process, processes = rank_and_world_size()
    tensors: dict[str, torch.Tensor] = {}
    facts: dict[str, Any] = {"format": FORMAT, "process": process, "processes": processes, "optimizer": _kind(bare)}
    facts["sharded"] = any(hasattr(each, "placements") for group in bare.param_groups for each in group["params"])
    facts |= {"groups": _group_facts(stored, groups, bare), "tensors": {}, "values": {}}
    for parameter, key, value in _entries(stored, groups):
        name = f"{parameter}/{key}"
        if not isinstance(value, torch.Tensor):
            facts["values"][name] = _as_json(value, name)
            continue
        tensors[name] = local_shard(value)
        facts["tensors"][name] = _place_facts(value)
    return tensors, facts


def _entries(stored: Mapping[str, Any], groups: Sequence[Sequence[str]]) -> Iterator[tuple[str, str, Any]]:
    """(parameter, state, value) of everything in a state dict."""
    indices = [index for group in stored["param_groups"] for index in group["params"]]
    names = dict(zip(indices, [name for group in groups for name in group], strict=True))
    for index, state in stored["state"].items():
        if index not in names:
            raise ValueError(f"the optimizer keeps state `{index}` of no parameter, which cannot be saved in parts")
        for key, value in state.items():
            yield names[index], key, value


def _place_facts(value: torch.Tensor) -> dict[str, Any]:
    if not hasattr(value, "placements"):
        return {"whole": True}
    region = shard_slice_of(value)
    assert tuple(local_shard(value).shape) == region.size, "sharded in another way than torch.chunk's"
    cut = [None if each.is_replicate() else each.dim for each in value.placements]
    return {"shape": list(region.shape), "offset": list(region.offset), "cut": cut}


def _group_facts(
    stored: Mapping[str, Any], groups: Sequence[Sequence[str]], optimizer: torch.optim.Optimizer
) -> list[dict[str, Any]]:
    facts = []
    for names, group, own in zip(groups, stored["param_groups"], optimizer.param_groups, strict=True):
        options = {name: _number(value) for name, value in group.items() if name != "params"}
        shapes = {name: list(each.shape) for name, each in zip(names, own["params"], strict=True)}
        facts.append({"parameters": shapes, "options": _as_json(options, "options of a group")})
    return facts


def _number(value: Any) -> Any:
    """A learning rate that is a tensor counts as its value."""
    return value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value


def _as_json(value: Any, name: str) -> Any:
    try:
        plain, tensors = state_dict_io.split(value)
    except TypeError as error:
        raise ValueError(f"the optimizer's `{name}`: {error}") from error
    if tensors:
        raise ValueError(f"the optimizer's `{name}` is a {type(value).__name__} of tensors; it cannot be sharded")
    return plain


# ---- the optimizer's state, read ----


@dataclass
class Stored:
    """One tensor of optimizer state as the files have it, none of it read yet.

    Attributes:
        pieces: What can be sliced inside its region, from 0 on.
        cut: The dimension along which each axis of the mesh had cut it; None: not known, it was not sharded.
        own: One that is whole in each process, as this process wrote it, or the first one where there were fewer.
    """

    pieces: dict[ShardSlice, Any] = field(default_factory=dict)
    cut: list[int | None] | None = None
    own: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return next(iter(self.pieces)).shape if self.pieces else tuple(self.own.shape)


@dataclass
class Saved:
    """What a checkpoint holds of an optimizer; `kind` and the parameters' shapes only if it was written in parts."""

    kind: str | None
    processes: int
    groups: list[dict[str, Any]]
    tensors: dict[str, Stored] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


def load_local_state(model: nn.Module, optimizer: Any, folder: Path | str) -> None:
    """Fills the optimizer with its part of a checkpoint's state, whoever wrote it: any number of processes, under FSDP2
    or not.

    Raises:
        ValueError: the state is missing, incomplete or damaged, or of another model or optimizer. Nothing is changed
            then.
    """
    folder, bare = Path(folder), _bare(optimizer)
    groups = _group_names(model, bare)
    with contextlib.ExitStack() as open_files:
        with folder_read_errors(folder, "the optimizer's state", "a damaged optimizer state"):
            saved = _read_parts(folder, open_files) if has_parts(folder) else _read_whole(folder, groups)
            _check(saved, groups, bare)
            state = _state_dict(saved, groups, bare)
        bare.load_state_dict(state)


def _read_parts(folder: Path, open_files: contextlib.ExitStack) -> Saved:
    counts = {int(match[2]) for path in folder.iterdir() if (match := PART.fullmatch(path.name))}
    if len(counts) != 1:
        raise Mismatch(f"holds optimizer parts of {' and of '.join(map(str, sorted(counts)))} processes: take another")
    (processes,), saved = counts, None
    for process in range(processes):
        name = part_name(process, processes)
        if not (folder / f"{name}.json").is_file():
            raise Mismatch(f"has no {name}.json: one of its {processes} parts is missing")
        facts = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        if facts["format"] != FORMAT:
            raise Mismatch(f"has a {name}.json of format {facts['format']!r}; this version reads format {FORMAT}")
        saved = saved or Saved(facts["optimizer"], processes, facts["groups"])
        if (facts["optimizer"], facts["groups"]) != (saved.kind, saved.groups):
            raise Mismatch(f"holds parts of different optimizers: {name}.json does not fit the first one")
        _add_part(
            saved,
            facts,
            _opened(folder / f"{name}.safetensors", facts, open_files),
            process == rank_and_world_size()[0],
        )
    return saved


def _opened(path: Path, facts: Mapping[str, Any], open_files: contextlib.ExitStack) -> Any:
    if not facts["tensors"]:  # an optimizer without state
        return None
    if not path.is_file():
        raise Mismatch(f"has no {path.name}")
    return open_files.enter_context(safe_open(path, framework="pt"))


def _add_part(saved: Saved, facts: Mapping[str, Any], file: Any, is_own: bool) -> None:
    for name, place in facts["tensors"].items():
        stored = saved.tensors.setdefault(name, Stored())
        if "whole" in place:
            stored.own = file.get_tensor(name) if is_own or stored.own is None else stored.own
            if not facts["sharded"]:
                stored.pieces = {shard_slice_of(stored.own): stored.own}
            continue
        source = file.get_slice(name) if place["shape"] else file.get_tensor(name)
        size = tuple(source.get_shape()) if place["shape"] else ()
        region = ShardSlice(tuple(place["shape"]), tuple(place["offset"]), size)
        box = zip(region.shape, region.offset, size, strict=True)
        if region.shape != (stored.shape if stored.pieces else region.shape) or any(s < o + n for s, o, n in box):
            raise ValueError(f"{name} lies outside its tensor")
        stored.pieces[region], stored.cut = source, place["cut"]
    saved.values |= facts["values"] if is_own else {k: v for k, v in facts["values"].items() if k not in saved.values}


def _read_whole(folder: Path, groups: Sequence[Sequence[str]]) -> Saved:
    """What a run without FSDP wrote: optimizer.json and optimizer.safetensors, a state dict."""
    try:
        state = state_dict_io.read(folder, "optimizer")
    except ValueError as error:
        raise Mismatch(str(error).removeprefix(f"{folder}").lstrip(": ")) from error
    sizes = [len(group["params"]) for group in state["param_groups"]]
    if sizes != [len(names) for names in groups]:
        raise Mismatch(f"holds the optimizer of other parameter groups, of {sizes} weights: it is another model's")
    found = []
    for names, group in zip(groups, state["param_groups"], strict=True):
        options = {name: value for name, value in group.items() if name != "params"}
        found.append({"parameters": dict.fromkeys(names), "options": state_dict_io.split(options)[0]})
    saved = Saved(None, 1, found)
    for parameter, key, value in _entries(state, groups):
        if isinstance(value, torch.Tensor):
            saved.tensors[f"{parameter}/{key}"] = Stored({shard_slice_of(value): value}, own=value)
        else:
            saved.values[f"{parameter}/{key}"] = state_dict_io.split(value)[0]
    return saved


def _check(saved: Saved, groups: Sequence[Sequence[str]], optimizer: torch.optim.Optimizer) -> None:
    if saved.kind not in (None, _kind(optimizer)):
        raise Mismatch(f"holds the state of the optimizer {saved.kind}, this run has {_kind(optimizer)}: name that one")
    own = dict(_with_parameters(groups, optimizer))
    stored = {name: shape for group in saved.groups for name, shape in group["parameters"].items()}
    for name in [*own, *stored]:
        if name not in stored or name not in own:
            whose = "this run trains and it does not" if name in own else "it trains and this run does not"
            raise Mismatch(f"holds the optimizer of another model: `{name}` is a weight that {whose}")
        if stored[name] is not None and tuple(stored[name]) != tuple(own[name].shape):
            sizes = f"{size_text(stored[name])} there and {size_text(own[name].shape)} here"
            raise Mismatch(f"holds the optimizer of another model: `{name}` is {sizes}")
    if [list(group["parameters"]) for group in saved.groups] != [list(names) for names in groups]:
        raise Mismatch("holds the optimizer of other parameter groups: give those that it was trained with")


def _with_parameters(
    groups: Sequence[Sequence[str]], optimizer: torch.optim.Optimizer
) -> Iterator[tuple[str, torch.Tensor]]:
    for names, group in zip(groups, optimizer.param_groups, strict=True):
        yield from zip(names, group["params"], strict=True)


def _state_dict(saved: Saved, groups: Sequence[Sequence[str]], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What the optimizer's own `load_state_dict` takes, with this process's part of each tensor."""
    numbered = optimizer.state_dict()["param_groups"]
    indices = [index for group in numbered for index in group["params"]]
    parameters = dict(_with_parameters(groups, optimizer))
    index_of = dict(zip(parameters, indices, strict=True))
    as_many = saved.processes == rank_and_world_size()[1]
    state: dict[int, dict[str, Any]] = {}
    for name, stored in saved.tensors.items():
        parameter, _, key = name.rpartition("/")
        state.setdefault(index_of[parameter], {})[key] = _part_of(stored, parameters[parameter], name, as_many)
    for name, value in saved.values.items():
        parameter, _, key = name.rpartition("/")
        state.setdefault(index_of[parameter], {})[key] = state_dict_io.join(value, {})
    options = [state_dict_io.join(group["options"], {}) for group in saved.groups]
    return {
        "state": state,
        "param_groups": [own | {"params": group["params"]} for own, group in zip(options, numbered, strict=True)],
    }


def _part_of(stored: Stored, parameter: torch.Tensor, name: str, as_many: bool) -> torch.Tensor:
    """A tensor of state as this process holds it beside the parameter. `as_many`: processes as when it was written."""
    shape = stored.shape
    if not stored.pieces:  # each process had one of its own beside its part of the weight
        if stored.own.numel() > 1 and not as_many:
            raise Mismatch(f"holds `{name}`, which another number of processes cannot divide: launch as many as before")
        return stored.own.clone()
    if not hasattr(parameter, "placements"):
        return _assembled(stored, ShardSlice(shape, (0,) * len(shape), shape), name)
    mesh, placements = parameter.device_mesh, parameter.placements
    if shape != tuple(parameter.shape):
        if stored.cut is None and math.prod(shape) == 1:
            return stored.own.clone()
        if stored.cut is None or len(stored.cut) != mesh.ndim:
            raise Mismatch(f"holds `{name}`, which is not shaped like its weight: it cannot be divided among processes")
        placements = [Replicate() if dim is None else Shard(dim) for dim in stored.cut]
    part = _assembled(stored, local_slice(shape, mesh, placements), name).to(parameter.device)
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride)


def _assembled(stored: Stored, wanted: ShardSlice, name: str) -> torch.Tensor:
    """The wanted box of a tensor, from the pieces that overlap it; nothing else is read."""
    if wanted.shape == ():
        return next(iter(stored.pieces.values())).clone()
    found, filled = None, 0
    for region, source in stored.pieces.items():
        first = [max(pair) for pair in zip(region.offset, wanted.offset, strict=True)]
        ends = zip(region.offset, region.size, wanted.offset, wanted.size, strict=True)
        last = [max(start, min(at + n, own + m)) for start, (at, n, own, m) in zip(first, ends, strict=True)]
        if found is not None and any(a >= b for a, b in zip(first, last, strict=True)):
            continue
        there = tuple(slice(a - at, b - at) for a, b, at in zip(first, last, region.offset, strict=True))
        here = tuple(slice(a - at, b - at) for a, b, at in zip(first, last, wanted.offset, strict=True))
        values = source[there]
        found = torch.empty(wanted.size, dtype=values.dtype) if found is None else found
        if values.numel():
            found[here] = values
            filled += values.numel()
    if found is None or filled != found.numel():
        raise Mismatch(f"lacks parts of `{name}`")
    return found
