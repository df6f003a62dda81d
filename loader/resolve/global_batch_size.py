"""`global_batch_size`: batch per device × accumulated batches × processes, solved for it or refused with options."""

from __future__ import annotations

import os

from loader.errors import Problems
from loader.sources.config_tree import Node, Origin, layer_index

GLOBAL, PER_DEVICE, ACCUMULATED = "global_batch_size", "per_device_train_batch_size", "gradient_accumulation_steps"
SOLVED = Origin(GLOBAL)  # what a key that follows from it says of its origin
LARGEST = 10**9  # samples; more is a slip, and divisors of more would be searched for long


def launched_processes() -> int:
    """Processes of this launch: 1 without a launcher."""
    size = os.environ.get("WORLD_SIZE", "")
    return max(1, int(size)) if size.isascii() and size.isdecimal() else 1


def settle_global_batch(tree: Node, layers: list[Node], problems: Problems) -> None:
    """Writes batch per device and accumulation into the tree, in place.

    The two bind where they are said beside `global_batch_size` or in a later layer; what an earlier layer says of the
    batch per device is an upper bound that is kept where it divides.
    """
    node = tree.value.get(GLOBAL)
    wanted = _count(node)
    if wanted is None or wanted > LARGEST:
        if wanted is not None:
            problems.add(f"`{GLOBAL}: {wanted}`{node.origin.place} is more than {LARGEST:,} samples; lower it")
        return  # absent, or of a wrong type: said where types are checked
    processes, own = launched_processes(), layer_index(layers, GLOBAL)
    label = f"`{GLOBAL}: {wanted}`{node.origin.place}"
    if wanted % processes:
        problems.add(f"{label} cannot be shared by {processes} processes alike; {_other_sizes(wanted, processes)}")
        return
    share = wanted // processes
    size, steps = _count(tree.value.get(PER_DEVICE)), _count(tree.value.get(ACCUMULATED))
    if size is None or (steps is None and ACCUMULATED in tree.value):
        return
    binding = {name: tree.value[name] for name in (PER_DEVICE, ACCUMULATED) if layer_index(layers, name) >= own}
    chosen = _solved(share, size, steps or 1, binding)
    if chosen is None:
        settings = " and ".join(f"`{name}: {each.value}`{each.origin.place}" for name, each in binding.items())
        per = f" for each of {processes} processes" if processes > 1 else ""
        problems.add(
            f"{label} is {share} samples a step{per}, which {settings} does not give; {_splits(share, binding)}"
        )
        return
    for name, value in zip((PER_DEVICE, ACCUMULATED), chosen, strict=True):
        if name not in binding:
            tree.value[name] = Node(value, SOLVED)


def _solved(share: int, size: int, steps: int, binding: dict[str, Node]) -> tuple[int, int] | None:
    """(batch per device, accumulated batches) whose product is `share`, or None."""
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
    """`4 per device × 2 accumulated × 2 processes = 16`."""
    processes = launched_processes() if processes is None else processes
    parts = [f"{size} per device"]
    parts += [f"{steps} accumulated"] if steps > 1 else []
    parts += [f"{processes} processes"] if processes > 1 else []
    return " × ".join(parts) + (f" = {size * steps * processes}" if len(parts) > 1 else "")


def divisors(number: int) -> list[int]:
    """Every divisor, smallest first."""
    small = [index for index in range(1, int(number**0.5) + 1) if number % index == 0]
    return sorted({*small, *(number // each for each in small)})


def _count(node: Node | None) -> int | None:
    """A node's whole number of at least 1, also where it is written as text; None otherwise."""
    value = node.value if node is not None else None
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 16:
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _other_sizes(wanted: int, processes: int) -> str:
    """What divides: other sizes for these processes, other numbers of processes for this size."""
    below = wanted // processes * processes
    sizes = " or ".join(str(each) for each in (below, below + processes) if each > 0)
    counts = [divisor for divisor in divisors(wanted) if divisor <= 2 * processes][-3:]
    return f"give {sizes}, or launch {' or '.join(map(str, counts))} process(es)"


def _splits(share: int, binding: dict[str, Node]) -> str:
    """The pairs that multiply to `share`, those near what was said."""
    wanted = _count(binding.get(PER_DEVICE)) or share // max(1, _count(binding[ACCUMULATED]) or 1)
    near = sorted(sorted(divisors(share), key=lambda each: abs(each - wanted))[:4])
    pairs = ", ".join(f"{each} × {share // each}" for each in near)
    return f"{PER_DEVICE} × {ACCUMULATED} may be {pairs}; leave one of them out, or give another {GLOBAL}"
