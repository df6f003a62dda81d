"""Run the episodes of a recording or an evaluation on several processes.

A worker is a fresh interpreter: it inherits no OpenGL context, no lock and no GPU state. It imports `__main__` again,
so a script that starts workers needs the `if __name__ == "__main__":` guard.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any

# One thread per worker, in array libraries and in Mesa's software OpenGL: with a worker on every core, more
# threads only make the workers wait for one another.
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "LP_NUM_THREADS": "1",
}

Start = Callable[[], Callable[[Any], Any]]


def default_workers() -> int:
    """One worker for each core that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run(start: Start, tasks: Sequence[Any], num_workers: int | None = None) -> Iterator[tuple[Any, Any]]:
    """Yield (task, result) in the order of completion.

    Closing the iterator, or an error, ends all workers at once.

    Args:
        start: Called once in each worker; returns the function that does a task. It and the tasks must pickle.
        num_workers: 0 does everything in this process; None takes a worker for each core.

    Raises:
        ValueError: A task raised it, or an OSError.
        RuntimeError: A worker died. Other errors of a task are raised as they are.
    """
    if num_workers is not None and num_workers < 0:
        raise ValueError(f"the number of simulator processes must be at least 0, got {num_workers}")
    count = min(default_workers() if num_workers is None else num_workers, len(tasks))
    if count == 0:
        work = start() if tasks else None
        for task in tasks:
            yield task, work(task)
        return
    others = set(multiprocessing.active_children())
    executor = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _start_worker)
    try:
        with _environment(ONE_THREAD):
            futures = {executor.submit(_work, start, task): task for task in tasks}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except OSError as error:
        raise ValueError(str(error)) from error
    finally:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        executor.shutdown(cancel_futures=True)


def _start_worker() -> None:
    # Ctrl-C reaches every process of the terminal; only the parent handles it, and ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _work(start: Start, task: Any) -> Any:
    global _function
    if _function is None:
        _function = start()
    return _function(task)


_function: Callable[[Any], Any] | None = None  # of this worker, from its first task on


def progress(results: Iterator[Any], total: int, verb: str, report: Callable[[str], None]) -> Iterator[Any]:
    """Pass results on and report their number: a bar on a terminal, ten lines in a log."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(results, total=total, desc=verb, unit="episode")
        return
    for count, result in enumerate(results, 1):
        if count * 10 // total > (count - 1) * 10 // total:
            report(f"{verb} {count} of {total} episodes")
        yield result


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables for the processes started in the block, except those that the user has set."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
