"""Copies of tensors in pinned host memory: made while training waits, read by the writer while it continues."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from tqdm import tqdm

ALIGNMENT = 64  # bytes; no element of a tensor is larger


class StagingBuffers:
    """Host buffers that are reused from one save to the next: filling fresh memory is several times slower.

    Copies of CUDA tensors are queued on the current stream, behind the work that it already has: the host continues at
    once, and the device as soon as the copies are made. `wait` must be called before the copies are read.
    """

    def __init__(self) -> None:
        self.buffers: dict[tuple[str, str], torch.Tensor] = {}
        self.events: list[tuple[torch.device, Any]] = []
        self.can_pin = True

    def copy(self, kind: str, tensors: Mapping[str, Any], constant: Collection[int] = ()) -> dict[str, Any]:
        """Return host copies of tensors under the same names, as the tensors are now.

        Args:
            kind: Name of the set of tensors, since a name may occur in several sets. The next call with the same kind
                overwrites the copies.
            tensors: Tensors by name; other values are returned as they are.
            constant: `data_ptr()` of tensors that never change; these are returned as they are.

        Tied weights (names of one tensor) share one copy.
        """
        first_name: dict[Any, str] = {}
        copied_as: dict[str, str] = {}
        values: dict[str, Any] = {}
        for name, value in tensors.items():
            values[name] = value = value.detach() if isinstance(value, torch.Tensor) else value
            if isinstance(value, torch.Tensor) and not (value.numel() and value.data_ptr() in constant):
                memory = (value.data_ptr(), value.shape, value.stride(), value.dtype) if value.numel() else name
                copied_as[name] = first_name.setdefault(memory, name)
        sources = {name: values[name] for name in first_name.values()}
        self._allocate(kind, sources)
        for name, source in sources.items():
            _copy(self.buffers[kind, name], source)
        for device in {source.device for source in sources.values() if source.device.type == "cuda"}:
            event = torch.cuda.Event(blocking=True)  # a waiting thread leaves the CPU to others
            event.record(torch.cuda.current_stream(device))
            self.events.append((device, event))
        return {name: self.buffers[kind, copied_as[name]] if name in copied_as else values[name] for name in values}

    def wait(self) -> None:
        """Wait until every copy holds its values. Sets the calling thread's current CUDA device."""
        while self.events:
            device, event = self.events.pop()
            torch.cuda.set_device(device)  # a new thread has device 0, where this rank may have no context
            event.synchronize()

    def _allocate(self, kind: str, sources: Mapping[str, torch.Tensor]) -> None:
        """Allocate the buffers that are missing or have another shape or type."""
        missing = {
            name: source for name, source in sources.items() if not _fits(self.buffers.get((kind, name)), source)
        }
        on_gpu = {name: source for name, source in missing.items() if source.device.type == "cuda" and source.numel()}
        pinned = packed(on_gpu, self._memory)
        for name, source in missing.items():
            buffer = pinned[name] if name in pinned else torch.empty(source.shape, dtype=source.dtype)
            self.buffers[kind, name] = buffer

    def _memory(self, size: int) -> torch.Tensor:
        """Allocate `size` bytes, pinned if possible."""
        if self.can_pin:
            try:
                return torch.empty(size, dtype=torch.uint8, pin_memory=True)
            except RuntimeError as error:
                self.can_pin = False
                reason = str(error).partition("\n")[0]
                line = f"{size / 2**20:.0f} MB of host memory could not be pinned ({reason}); saves pause training for "
                tqdm.write(f"{line}longer: give the job more memory", file=sys.stderr)
        return torch.empty(size, dtype=torch.uint8)


def _fits(buffer: torch.Tensor | None, tensor: torch.Tensor) -> bool:
    return buffer is not None and buffer.shape == tensor.shape and buffer.dtype == tensor.dtype


def _copy(buffer: torch.Tensor, tensor: torch.Tensor) -> None:
    """Copy a tensor; from a GPU only the start of the copy is waited for."""
    if tensor.device.type == "cpu" and tensor.is_contiguous():
        # torch would split a few megabytes among its threads, which wait for one another on busy cores.
        ctypes.memmove(buffer.data_ptr(), tensor.data_ptr(), tensor.numel() * tensor.element_size())
    else:
        buffer.copy_(tensor, non_blocking=tensor.device.type == "cuda")


def packed(tensors: Mapping[str, torch.Tensor], allocate: Callable[[int], torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return uninitialized host tensors of the same names, shapes and types, placed side by side in a few blocks.

    The sizes of blocks are powers of two: torch rounds each pinned allocation up to one, so that an allocation for each
    tensor could take twice the memory. Each tensor has its own storage object, since safetensors takes tensors of one
    storage for tied weights.

    Args:
        allocate: Size in bytes -> uint8 tensor (size,).
    """
    sizes = {name: -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for name, tensor in tensors.items()}
    remaining, buffers = sum(sizes.values()), {}
    free: list[Any] = []  # the unused end of each block, as a uint8 array
    for name in sorted(sizes, key=sizes.get, reverse=True):
        size, tensor = sizes[name], tensors[name]
        number = next((number for number, block in enumerate(free) if len(block) >= size), len(free))
        if number == len(free):
            largest_within, smallest_around = 1 << (remaining.bit_length() - 1), 1 << (size - 1).bit_length()
            free.append(allocate(max(largest_within, smallest_around)).numpy())
        place, free[number] = free[number][: tensor.nbytes], free[number][size:]
        buffers[name] = torch.from_numpy(place).view(tensor.dtype).view(tensor.shape)
        remaining -= size
    return buffers
