"""Training in several processes: agreement of the ranks, shards of tensors under FSDP2, and checks of the launch.

Under FSDP2 every parameter is a DTensor: each rank holds some of its rows, as `torch.chunk` distributes them; the last
ranks may hold none. Optimizer state of the same shape is sharded in the same way.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import Shard

from trainer.hf_patches import replace_next_step

TIMEOUT = timedelta(hours=2)  # the other ranks wait while rank 0 writes


class Consensus:
    """Collective operations on the CPU. All ranks must make the same calls; with one process they return at once."""

    def __init__(self) -> None:
        is_initialized = torch.distributed.is_available() and torch.distributed.is_initialized()
        has_ranks = is_initialized and torch.distributed.get_world_size() > 1
        self.group = torch.distributed.new_group(backend="gloo", timeout=TIMEOUT) if has_ranks else None
        self.in_flight: tuple[torch.Tensor, Any] | None = None

    def all_reduce_max_async(self, values: Sequence[int]) -> list[int]:
        """Start an all-reduce with MAX and return the result of the one that the previous call started.

        The reduction runs during a whole training step, so that no rank waits for another one. The result includes the
        values of all previous calls.

        Args:
            values: Integers ≥ 0, as many in each call.
        """
        if self.group is None:
            return list(values)
        known = self._wait() or [0] * len(values)
        tensor = torch.tensor([max(pair) for pair in zip(values, known, strict=True)], dtype=torch.int64)
        work = torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX, group=self.group, async_op=True)
        self.in_flight = (tensor, work)
        return known

    def _wait(self) -> list[int] | None:
        if self.in_flight is None:
            return None
        (tensor, work), self.in_flight = self.in_flight, None
        work.wait()
        return tensor.tolist()

    def all_reduce_max(self, values: Sequence[int]) -> list[int]:
        """As `all_reduce_max_async`, but wait for the other ranks and return the result of this call."""
        self.all_reduce_max_async(values)
        return self.all_reduce_max_async(values) if self.group is not None else list(values)

    def gather_to_rank0(self, value: Any) -> list[Any]:
        """Return the values of all ranks, by rank, on rank 0; an empty list elsewhere."""
        if self.group is None:
            return [value]
        is_main = torch.distributed.get_rank() == 0
        values = [None] * torch.distributed.get_world_size() if is_main else None
        torch.distributed.gather_object(value, values, dst=0, group=self.group)
        return values or []

    def broadcast_from_rank0(self, value: Any) -> Any:
        """Return rank 0's value."""
        if self.group is None:
            return value
        values = [value]
        torch.distributed.broadcast_object_list(values, src=0, group=self.group)
        return values[0]

    def close(self) -> None:
        """Wait for the reduction that is in flight; an error because other ranks have exited is ignored."""
        with contextlib.suppress(RuntimeError):
            self._wait()


# ---- shards of tensors ----


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


# ---- how the processes were launched, and what accelerate would ignore silently ----

DEEPSPEED_LINE = (
    "DeepSpeed makes the updates inside its engine: a step that is not finite reaches the weights; "
    "checkpoints hold the engine's own pickled files beside Keel's: resume only from those that you wrote"
)
# Words in torch's errors about sharded tensors; its NotImplementedErrors are RuntimeErrors too.
DIVISION = re.compile(r"DTensor|shard|placement")


class CannotDivide(ValueError):
    """A setting that does not work with sharded weights."""


def check_launch(args: Any) -> None:
    """Check that processes which were launched together train together, each on one device.

    Raises:
        ValueError: each would train alone, all of them writing the same files; or one would spread each batch over
            several GPUs (`nn.DataParallel`), which makes the batch larger and losses vectors.
    """
    if args.n_gpu > 1:
        raise ValueError(
            f"one process sees {args.n_gpu} GPUs and would share each batch out among them; set CUDA_VISIBLE_DEVICES "
            "to one, or start a process for each with accelerate launch"
        )
    started = int(os.environ.get("WORLD_SIZE") or 1)
    if started > 1 and args.world_size == 1:
        raise ValueError(
            f"{started} processes were started and each would train alone, since no GPU was found; set "
            "ACCELERATE_USE_CPU=true in the environment to train on CPUs together"
        )


def wants_fsdp(args: Any) -> bool:
    """Whether an accelerate configuration or the training file asks for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" or args.fsdp_plugin_args is not None


def check_sharding(accelerator: Any, settings: Any, adapted: Any) -> None:
    """Check that all settings work with sharded weights.

    Raises:
        ValueError: a setting does not; the message says what to do.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    how = "FSDP" if plugin is not None else "DeepSpeed"
    if plugin is not None and plugin.fsdp_version != 2:
        raise ValueError("FSDP of version 1 is not supported; set `fsdp_version: 2` (scripts/accelerate/fsdp2.yaml)")
    if settings.ema is not None:
        raise ValueError(f"`using_ema` works with whole weights in each process, not with {how}; turn it off")
    if getattr(adapted, "quantization", None):
        raise ValueError(
            f"quantized weights cannot be sharded by {how}; turn `use_quantization` off, or train with ddp.yaml"
        )
    if settings.first_optimizer is not None:
        raise ValueError(f"`load_optimizer` works with whole weights in each process, not with {how}; leave it out")


def explain_first_step(optimizer: Any, name: str) -> None:
    """Turn torch's error about sharded weights in the optimizer's first step into one line.

    The error that passes then is a `CannotDivide`.
    """

    def explained(step: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        try:
            return step(*arguments, **options)
        except (RuntimeError, AssertionError) as error:
            text = " ".join(str(error).split())
            if isinstance(error, torch.OutOfMemoryError) or (text and not DIVISION.search(text)):
                raise
            raise CannotDivide(
                f"optimizer `{name}` cannot train sharded weights ({text[:200] or type(error).__name__}); AdamW, SGD "
                "and Lion can, or train with scripts/accelerate/ddp.yaml"
            ) from error

    replace_next_step(getattr(optimizer, "optimizer", optimizer), explained)


def leave_process_group() -> None:
    """Destroy the process group after a finished run; threads of gloo that still run at exit can abort the process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
