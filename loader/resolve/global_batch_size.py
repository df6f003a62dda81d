"""`global_batch_size`: compute batch per device and accumulation from it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from loader.errors import Problems
from loader.sources.config_tree import Node, Origin, layer_index

GLOBAL, PER_DEVICE, ACCUMULATED = "global_batch_size", "per_device_train_batch_size", "gradient_accumulation_steps"
SOLVED = Origin(GLOBAL)  # the origin of a computed key
LARGEST = 10**9  # samples; the search for divisors takes long above it


def launched_processes() -> int:
    """Return the number of launched processes; 1 without a launcher."""
    size = os.environ.get("WORLD_SIZE", "")
    return max(1, int(size)) if size.isascii() and size.isdecimal() else 1


@contextmanager
def as_if_launched(processes: int | None) -> Iterator[None]:
    """Inside, `processes` count as launched; None: those that are."""
    before = os.environ.get("WORLD_SIZE")
    if processes is not None:
        os.environ["WORLD_SIZE"] = str(processes)
    try:
        yield
    finally:
        if before is not None:
            os.environ["WORLD_SIZE"] = before
        elif processes is not None:
            del os.environ["WORLD_SIZE"]


def settle_global_batch(tree: Node, layers: list[Node], problems: Problems) -> None:
    """Compute batch per device and accumulation from `global_batch_size`, in place.

    Either of the two is fixed if it is given in the layer of `global_batch_size` or a later one. A batch per device of
    an earlier layer is an upper bound, and is kept if it divides the global batch size.
    """
    node = tree.value.get(GLOBAL)
    wanted = _count(node)
    if wanted is None or wanted > LARGEST:
        if wanted is not None:
            problems.add(f"`{GLOBAL}: {wanted}`{node.origin.place} is more than {LARGEST:,} samples; lower it")
        return  # absent, or of a wrong type, which the type check reports
    processes, level = launched_processes(), layer_index(layers, GLOBAL)
    label = f"`{GLOBAL}: {wanted}`{node.origin.place}"
    if wanted % processes:
        nearest = wanted // processes * processes or processes
        problems.add(
            f"{label} cannot be divided among {processes} processes; give a multiple of them, such as {nearest}"
        )
        return
    share = wanted // processes
    size, steps = _count(tree.value.get(PER_DEVICE)), _count(tree.value.get(ACCUMULATED))
    if size is None or (steps is None and ACCUMULATED in tree.value):
        return
    binding = {name: tree.value[name] for name in (PER_DEVICE, ACCUMULATED) if layer_index(layers, name) >= level}
    chosen = _solved(share, size, steps or 1, binding)
    if chosen is None:
        settings = " and ".join(f"`{name}: {fixed.value}`{fixed.origin.place}" for name, fixed in binding.items())
        per = f" for each of {processes} processes" if processes > 1 else ""
        problems.add(
            f"{label} is {share} samples a step{per}, which {settings} does not give; leave one of them out, or give "
            f"divisors: {', '.join(map(str, divisors(share)[:8]))} …"
        )
        return
    for name, value in zip((PER_DEVICE, ACCUMULATED), chosen, strict=True):
        if name not in binding:
            tree.value[name] = Node(value, SOLVED)


def _solved(share: int, size: int, steps: int, binding: dict[str, Node]) -> tuple[int, int] | None:
    """Return (batch per device, accumulated batches) whose product is `share`, or None."""
    if len(binding) == 2:
        return (size, steps) if size * steps == share else None
    if ACCUMULATED in binding:
        return (share // steps, steps) if share % steps == 0 else None
    if PER_DEVICE in binding:
        return (size, share // size) if share % size == 0 else None
    if size * steps == share:
        return size, steps
    fitting = max(divisor for divisor in divisors(share) if divisor <= max(1, size))
    return fitting, share // fitting


def batch_line(size: int, steps: int, processes: int | None = None) -> str:
    """Describe a batch: `4 per device × 2 accumulated × 2 processes = 16`."""
    processes = launched_processes() if processes is None else processes
    parts = [f"{size} per device"]
    parts += [f"{steps} accumulated"] if steps > 1 else []
    parts += [f"{processes} processes"] if processes > 1 else []
    return " × ".join(parts) + (f" = {size * steps * processes}" if len(parts) > 1 else "")


def divisors(number: int) -> list[int]:
    """Return all divisors, smallest first."""
    small = [index for index in range(1, int(number**0.5) + 1) if number % index == 0]
    return sorted({*small, *(number // divisor for divisor in small)})


def _count(node: Node | None) -> int | None:
    """Return a node's positive integer, also if it is written as text; None otherwise."""
    value = node.value if node is not None else None
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 16:
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
