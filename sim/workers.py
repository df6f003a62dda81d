"""Run the episodes of a recording or an evaluation on several processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tqdm import tqdm

from storage import worker_pool

# One thread per worker, in array libraries and in Mesa's software OpenGL: with a worker on every core, more
# threads only make the workers wait for one another.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LP_NUM_THREADS"), "1")


def run(start: worker_pool.Start, tasks: Sequence[Any], num_workers: int | None = None) -> Iterator[tuple[Any, Any]]:
    """Yield (task, result) as `storage.worker_pool.run`.

    Args:
        num_workers: 0 does everything in this process; None takes a worker for each core that this process may use.

    Raises:
        ValueError: A task raised it, or an OSError.
    """
    count = min(len(os.sched_getaffinity(0)) if num_workers is None else num_workers, len(tasks))
    try:
        yield from worker_pool.run(start, tasks, count, ONE_THREAD)
    except OSError as error:
        raise ValueError(str(error)) from error


def progress(results: Iterator[Any], total: int, verb: str, report: Callable[[str], None]) -> Iterator[Any]:
    """Pass results on and report their number: a bar on a terminal, ten lines in a log."""
    has_bar = sys.stderr.isatty()
    for count, result in enumerate(tqdm(results, verb, total, unit="episode", disable=not has_bar), 1):
        if not has_bar and count * 10 // total > (count - 1) * 10 // total:
            report(f"{verb} {count} of {total} episodes")
        yield result
