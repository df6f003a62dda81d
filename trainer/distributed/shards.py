"""Where the shards of tensors are under FSDP2, and the names of sharded parameters.

Under FSDP2 every parameter is a DTensor: each rank holds some of its rows, as `torch.chunk` distributes them; the last
ranks may hold none. Optimizer state of the same shape is sharded in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import Shard


class Mismatch(ValueError):
    """The files of a checkpoint do not fit the model, the optimizer or the number of processes."""


def is_sharded(model: nn.Module) -> bool:
    """Whether each rank holds only a part of the weights."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


@dataclass(frozen=True)
class ShardSlice:
    """A box inside a whole tensor.

    Attributes:
        shape: Of the whole tensor.
        offset: Index of the box's first element in each dimension.
        size: Of the box in each dimension; 0 if a rank holds no rows.
    """

    shape: tuple[int, ...]
    offset: tuple[int, ...]
    size: tuple[int, ...]

    @property
    def index(self) -> tuple[slice, ...]:
        """The box as an index of the whole tensor."""
        return tuple(slice(start, start + length) for start, length in zip(self.offset, self.size, strict=True))


def whole_slice(shape: Sequence[int]) -> ShardSlice:
    """Return the slice that is the whole tensor."""
    return ShardSlice(tuple(shape), (0,) * len(shape), tuple(shape))


def shard_slice_of(tensor: torch.Tensor) -> ShardSlice:
    """Return what this rank holds of a tensor: a shard of a DTensor, all of a plain tensor.

    Raises:
        ValueError: a DTensor is not sharded along its dimensions.
    """
    if not hasattr(tensor, "placements"):
        return whole_slice(tensor.shape)
    return local_slice(tensor.shape, tensor.device_mesh, tensor.placements)


def local_slice(shape: Sequence[int], mesh: Any, placements: Sequence[Any]) -> ShardSlice:
    """Return this rank's slice as `torch.chunk` gives it: equal numbers of rows, fewer or none for the last ranks."""
    offset, size = [0] * len(shape), list(shape)
    for axis, placement in enumerate(placements):
        if placement.is_replicate():
            continue
        if type(placement) is not Shard:
            raise ValueError(f"a tensor placed as {placement} cannot be saved in shards; use FSDP2 alone")
        dim = placement.dim
        rows = -(-size[dim] // mesh.size(axis))
        first = min(rows * mesh.get_local_rank(axis), size[dim])
        offset[dim], size[dim] = offset[dim] + first, min(rows, size[dim] - first)
    return ShardSlice(tuple(shape), tuple(offset), tuple(size))


def local_shard(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor itself, or this rank's shard of a DTensor: the same memory, no copy."""
    return tensor.detach().to_local() if hasattr(tensor, "placements") else tensor.detach()


def rank_and_world_size() -> tuple[int, int]:
    """Return this process's rank and the number of processes; (0, 1) without a process group."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def plain_name(name: str) -> str:
    """Return a parameter's name without the prefixes of DDP, torch.compile and activation checkpointing."""
    for wrapper in ("_checkpoint_wrapped_module.", "_orig_mod."):
        name = name.replace(wrapper, "")
    return name.removeprefix("module.")


def named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return parameters and persistent buffers by name, not copied; a tied one under each of its names."""
    for module in model.modules():
        if isinstance(module, FSDPModule):  # free what the last forward gathered: the parameters are shards again
            module.reshard()
    state = model.state_dict(keep_vars=True)
    return {plain_name(name): tensor for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}


def size_text(shape: Sequence[int]) -> str:
    """Return a shape as messages show it: `3×4`."""
    return "×".join(map(str, shape))
