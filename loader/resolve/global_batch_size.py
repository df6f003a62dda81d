"""`global_batch_size`: compute batch per device and accumulation from it."""

from __future__ import annotations

from loader.errors import Problems
from loader.resolve.run_config import ACCUMULATED, GLOBAL, PER_DEVICE, SOLVED, launched_processes
from loader.sources.config_tree import Node, layer_index

LARGEST = 10**9  # samples; the search for divisors takes long above it


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
