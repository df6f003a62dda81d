"""Copies of tensors in host memory, made while training waits, read while it goes on."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from tqdm import tqdm

ALIGNMENT = 64  # bytes; no element is larger


class HostCopies:
    """Buffers that are used again from one save to the next: fresh memory is several times slower to fill.

    Those of CUDA tensors are pinned, and their copies are queued between what the device has been given to compute
    and what it is given next: the host goes on at once, the device when the copies are made. Before these are read,
    `arrived` waits for the device.
    """

    def __init__(self) -> None:
        self.buffers: dict[tuple[str, str], torch.Tensor] = {}
        self.events: list[tuple[torch.device, Any]] = []
        self.can_pin = True

    def take(self, kind: str, tensors: Mapping[str, Any], constant: Collection[int] = ()) -> dict[str, Any]:
        """Host copies under the same names, as those tensors are now.

        Args:
            kind: The set that these belong to: a name may stand in several sets.
            tensors: Tensors by name; what else is among them is returned as it is.
            constant: `data_ptr()`s of tensors that nobody changes: they are returned as they are.

        Tensors that are one and the same (tied weights) are one and the same copy. A copy is overwritten by the next
        `take` of its kind.
        """
        first: dict[Any, str] = {}
        taken_as: dict[str, str] = {}
        copies: dict[str, Any] = {}
        for name, each in tensors.items():
            copies[name] = each = each.detach() if isinstance(each, torch.Tensor) else each
            if isinstance(each, torch.Tensor) and not (each.numel() and each.data_ptr() in constant):
                place = (each.data_ptr(), each.shape, each.stride(), each.dtype) if each.numel() else name
                taken_as[name] = first.setdefault(place, name)
        sources = {name: copies[name] for name in first.values()}
        self._make_buffers(kind, sources)
        for name, source in sources.items():
            _copy(self.buffers[kind, name], source)
        for device in {source.device for source in sources.values() if source.device.type == "cuda"}:
            event = torch.cuda.Event(blocking=True)  # whoever waits for it leaves the processor to others
            event.record(torch.cuda.current_stream(device))
            self.events.append((device, event))
        return {name: self.buffers[kind, taken_as[name]] if name in taken_as else copies[name] for name in copies}

    def arrived(self) -> None:
        """Waits until every copy holds its values. From here on the calling thread works with the copies' device."""
        while self.events:
            device, event = self.events.pop()
            torch.cuda.set_device(device)  # a new thread's is the first one, where this process may have no context
            event.synchronize()

    def _make_buffers(self, kind: str, sources: Mapping[str, torch.Tensor]) -> None:
        """Those that are not there or no longer fit."""
        missing = {name: each for name, each in sources.items() if not _fits(self.buffers.get((kind, name)), each)}
        on_gpu = {name: each for name, each in missing.items() if each.device.type == "cuda" and each.numel()}
        buffers = packed(on_gpu, self._memory)
        for name, each in missing.items():
            buffer = buffers[name] if name in buffers else torch.empty(each.shape, dtype=each.dtype)
            self.buffers[kind, name] = buffer

    def _memory(self, size: int) -> torch.Tensor:
        """So many bytes, pinned if they can be."""
        if self.can_pin:
            try:
                return torch.empty(size, dtype=torch.uint8, pin_memory=True)
            except RuntimeError as error:
                self.can_pin = False
                line = f"{size / 2**20:.0f} MB of host memory could not be pinned ({str(error).partition(chr(10))[0]})"
                tqdm.write(
                    f"{line}: saves copy to memory that is not, which holds training up for longer; give the job more "
                    "memory",
                    file=sys.stderr,
                )
        return torch.empty(size, dtype=torch.uint8)


def _fits(buffer: torch.Tensor | None, tensor: torch.Tensor) -> bool:
    return buffer is not None and buffer.shape == tensor.shape and buffer.dtype == tensor.dtype


def _copy(buffer: torch.Tensor, tensor: torch.Tensor) -> None:
    """From a GPU, only begins to."""
    if tensor.device.type == "cpu" and tensor.is_contiguous():
        # torch would share a few megabytes out over its threads, which wait for one another on busy cores.
        ctypes.memmove(buffer.data_ptr(), tensor.data_ptr(), tensor.numel() * tensor.element_size())
    else:
        buffer.copy_(tensor, non_blocking=tensor.device.type == "cuda")


def packed(tensors: Mapping[str, torch.Tensor], memory: Callable[[int], torch.Tensor]) -> dict[str, torch.Tensor]:
    """Host tensors of these names, shapes and types, with values yet to come, side by side in a few blocks.

    The blocks' sizes are powers of two: torch rounds each piece of pinned memory up to one, so that a block for each
    tensor could take twice the memory. Each tensor has a storage of its own, lest writers take them for tied.

    Args:
        memory: Size in bytes -> uint8 tensor (size,).
    """
    sizes = {name: -(-each.nbytes // ALIGNMENT) * ALIGNMENT for name, each in tensors.items()}
    left, found = sum(sizes.values()), {}
    blocks: list[Any] = []  # what is free of each, as a uint8 array
    for name in sorted(sizes, key=sizes.get, reverse=True):
        size, tensor = sizes[name], tensors[name]
        number = next((number for number, free in enumerate(blocks) if len(free) >= size), len(blocks))
        if number == len(blocks):
            largest_within, smallest_around = 1 << (left.bit_length() - 1), 1 << (size - 1).bit_length()
            blocks.append(memory(max(largest_within, smallest_around)).numpy())
        own, blocks[number] = blocks[number][: tensor.nbytes], blocks[number][size:]
        found[name] = torch.from_numpy(own).view(tensor.dtype).view(tensor.shape)
        left -= size
    return found
