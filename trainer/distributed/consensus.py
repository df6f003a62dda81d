"""Exchange of small values between ranks over gloo, beside the training and without waiting for a device."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed

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
