"""Copies of tensors in host memory, made while training waits, read while it goes on."""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Mapping
from typing import Any

import torch


class HostCopies:
    """Buffers that are used again from one save to the next: fresh memory is several times slower to fill.

    On CUDA they are pinned and filled by a stream of their own: the host goes on at once, and the device's next kernels
    wait until the copies have been taken. Before they are read, `arrived` waits for the device.
    """

    def __init__(self) -> None:
        self.buffers: dict[str, torch.Tensor] = {}
        self.streams: dict[torch.device, Any] = {}
        self.events: list[Any] = []

    def take(self, kind: str, tensors: Mapping[str, Any], constant: Collection[int] = ()) -> dict[str, Any]:
        """Host copies under the same names, as those tensors are now.

        Args:
            kind: The set that these belong to: a name may stand in several sets.
            tensors: Tensors by name; what else is among them is returned as it is.
            constant: `data_ptr()`s of tensors that nobody changes: they are returned as they are.

        Tensors that are one and the same (tied weights) are one and the same copy. A copy is overwritten by the next
        `take` of its kind.
        """
        taken: dict[Any, torch.Tensor] = {}
        copies: dict[str, Any] = {}
        for name, each in tensors.items():
            if not isinstance(each, torch.Tensor):
                copies[name] = each
                continue
            each = each.detach()
            place = (each.data_ptr(), each.shape, each.stride(), each.dtype) if each.numel() else name
            if each.numel() and each.data_ptr() in constant:
                copies[name] = each
            elif place in taken:
                copies[name] = taken[place]
            else:
                copies[name] = taken[place] = self._copy(f"{kind}/{name}", each)
        return copies

    def _copy(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        buffer, on_gpu = self.buffers.get(name), tensor.device.type == "cuda"
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=on_gpu)
            self.buffers[name] = buffer
        if on_gpu:
            return self._copy_beside(buffer, tensor)
        if tensor.device.type == "cpu" and tensor.is_contiguous():
            # torch would share a few megabytes out over its threads, which wait for one another on busy cores.
            ctypes.memmove(buffer.data_ptr(), tensor.data_ptr(), tensor.numel() * tensor.element_size())
            return buffer
        return buffer.copy_(tensor)

    def _copy_beside(self, buffer: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
        """Begins to copy; what the device is given to do from now on waits for it."""
        device = tensor.device
        stream = self.streams.setdefault(device, torch.cuda.Stream(device))
        computing = torch.cuda.current_stream(device)
        stream.wait_stream(computing)
        with torch.cuda.stream(stream):
            buffer.copy_(tensor, non_blocking=True)
            event = torch.cuda.Event()
            event.record(stream)
        tensor.record_stream(stream)  # its memory is not given away before the copy is done
        computing.wait_event(event)
        self.events.append(event)
        return buffer

    def arrived(self) -> None:
        """Waits until every copy holds its values."""
        while self.events:
            self.events.pop().synchronize()
