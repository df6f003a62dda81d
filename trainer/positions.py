"""A resumed epoch begins where it stood: the sampler is told its position, no batch is drawn to be dropped."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import transformers.trainer


@contextlib.contextmanager
def positions_instead_of_skipping() -> Iterator[None]:
    """Inside, transformers' resuming takes no time in the number of batches done, where the sampler allows it."""
    skipping = transformers.trainer.skip_first_batches
    transformers.trainer.skip_first_batches = lambda loader, batches=0: started_at(loader, batches, skipping)
    try:
        yield
    finally:
        transformers.trainer.skip_first_batches = skipping


def started_at(loader: Any, batches: int, skipping: Callable[[Any, int], Any]) -> Any:
    """The loader, whose next pass begins after `batches` batches of each process; `skipping(loader, batches)` where
    its sampler has no `set_position`, or where processes fill up an uneven end with the epoch's first batches."""
    shard = loader.batch_sampler
    inner = getattr(shard, "batch_sampler", shard)  # of several processes each takes every n-th batch
    processes = getattr(shard, "num_processes", 1)
    sampler, size = getattr(inner, "sampler", None), getattr(inner, "batch_size", None)
    knows = hasattr(sampler, "set_position") and size and not getattr(shard, "split_batches", False)
    if not knows or (processes > 1 and len(sampler) % (size * processes)):
        return skipping(loader, batches)
    sampler.set_position(min(batches * size * processes, len(sampler)))
    return loader
