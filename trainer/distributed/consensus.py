"""What one process knows, all of them know: exchanged beside the training, without waiting for a device."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed

PATIENCE = timedelta(hours=2)  # the others wait while the first process writes


class Agreement:
    """What one process has seen, all of them know at the same step's end.

    With several processes each call hands in what the process knows and returns the largest of what any of them has
    handed in at the calls before: the exchange runs beside a whole step, over a connection between hosts' memories,
    and nobody waits for a device. All processes must call alike.
    """

    def __init__(self) -> None:
        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        several = several and torch.distributed.get_world_size() > 1
        self.group = torch.distributed.new_group(backend="gloo", timeout=PATIENCE) if several else None
        self.under_way: tuple[torch.Tensor, Any] | None = None

    def exchange(self, values: Sequence[int]) -> list[int]:
        """Whole numbers ≥ 0 in, as many out."""
        if self.group is None:
            return list(values)
        known = self._arrived() or [0] * len(values)
        tensor = torch.tensor([max(pair) for pair in zip(values, known, strict=True)], dtype=torch.int64)
        work = torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX, group=self.group, async_op=True)
        self.under_way = (tensor, work)
        return known

    def _arrived(self) -> list[int] | None:
        if self.under_way is None:
            return None
        (tensor, work), self.under_way = self.under_way, None
        work.wait()
        return tensor.tolist()

    def at_once(self, values: Sequence[int]) -> list[int]:
        """As `exchange`, of this very call: waits for the others."""
        self.exchange(values)
        return self.exchange(values) if self.group is not None else list(values)

    def everyone(self, value: Any) -> list[Any]:
        """JSON values of all processes, by rank, on the first process; what others get is of no use."""
        if self.group is None:
            return [value]
        is_first = torch.distributed.get_rank() == 0
        found = [None] * torch.distributed.get_world_size() if is_first else None
        torch.distributed.gather_object(value, found, dst=0, group=self.group)
        return found or []

    def first_says(self, value: Any) -> Any:
        """The first process's value."""
        if self.group is None:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0, group=self.group)
        return box[0]

    def close(self) -> None:
        """Takes in what is still under way; the others may be gone, which is not what a run that ends dies of."""
        with contextlib.suppress(RuntimeError):
            self._arrived()
