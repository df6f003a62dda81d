"""Weights that FSDP2 divides among processes: whose part of a tensor lies where, and what they are called.

Under FSDP2 every parameter is a DTensor: each process holds some rows of it, as `torch.chunk` deals them out, the last
processes perhaps none. Optimizer state has the same shape and is held in the same way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from safetensors import SafetensorError
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import Shard

DAMAGED = (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, RuntimeError, SafetensorError)


def is_sharded(model: nn.Module) -> bool:
    """Whether each process holds a part of the weights only."""
    return any(isinstance(each, FSDPModule) for each in model.modules())


# ---- where a tensor lies ----


@dataclass(frozen=True)
class ShardSlice:
    """A box inside a whole tensor.

    Attributes:
        shape: Of the whole tensor.
        offset: Of the box's first element, in each dimension.
        size: Of the box, in each dimension; 0 where a process holds no rows.
    """

    shape: tuple[int, ...]
    offset: tuple[int, ...]
    size: tuple[int, ...]


def shard_slice_of(tensor: torch.Tensor) -> ShardSlice:
    """What this process holds of a tensor: a shard of a DTensor, all of a plain one.

    Raises:
        ValueError: a DTensor that is not simply cut along its dimensions.
    """
    shape = tuple(tensor.shape)
    if not hasattr(tensor, "placements"):
        return ShardSlice(shape, (0,) * len(shape), shape)
    return local_slice(shape, tensor.device_mesh, tensor.placements)


def local_slice(shape: Sequence[int], mesh: Any, placements: Sequence[Any]) -> ShardSlice:
    """The rows that `torch.chunk` would give to this process: all have as many, the last ones fewer or none."""
    offset, size = [0] * len(shape), list(shape)
    for axis, placement in enumerate(placements):
        if placement.is_replicate():
            continue
        if type(placement) is not Shard:
            raise ValueError(f"a tensor placed as {placement} cannot be saved in parts; use FSDP2 alone")
        dim = placement.dim
        rows = -(-size[dim] // mesh.size(axis))
        first = min(rows * mesh.get_local_rank(axis), size[dim])
        offset[dim], size[dim] = offset[dim] + first, min(rows, size[dim] - first)
    return ShardSlice(tuple(shape), tuple(offset), tuple(size))


def local_shard(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself, or this process's shard of it: the same memory, no copy."""
    return tensor.detach().to_local() if hasattr(tensor, "placements") else tensor.detach()


def rank_and_world_size() -> tuple[int, int]:
    """(this process's number, how many there are)"""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


# ---- names ----


def plain_name(name: str) -> str:
    """A parameter's name in the model itself, without what DDP, torch.compile and activation checkpointing add."""
    for wrapper in ("_checkpoint_wrapped_module.", "_orig_mod."):
        name = name.replace(wrapper, "")
    return name.removeprefix("module.")


def named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers by name, the very objects; a tied one under each of its names."""
    for module in model.modules():
        if isinstance(module, FSDPModule):  # what the last forward gathered is let go: it holds its shards again
            module.reshard()
    state = model.state_dict(keep_vars=True)
    return {plain_name(name): each for name, each in state.items() if isinstance(each, torch.Tensor)}


# ---- what a folder holds of them ----


class Mismatch(Exception):
    """What a folder lacks or holds instead; its text continues a sentence that begins with the folder's name."""


@contextlib.contextmanager
def folder_read_errors(folder: Path, what: str, damaged: str) -> Iterator[None]:
    """What reading a folder leads to, as a ValueError of one line."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{folder}: {what} cannot be read ({error})") from error
    except Mismatch as error:
        raise ValueError(f"{folder} {error}") from error
    except DAMAGED as error:
        text = " ".join(str(error).split())
        raise ValueError(f"{folder} has {damaged} ({type(error).__name__}: {text})") from error


def size_text(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))
