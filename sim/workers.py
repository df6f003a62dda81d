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

from tqdm import tqdm

# One thread per worker, in array libraries and in Mesa's software OpenGL: with a worker on every core, more
# threads only make the workers wait for one another.
ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LP_NUM_THREADS")

Start = Callable[[], Callable[[Any], Any]]


def run(start: Start, tasks: Sequence[Any], num_workers: int | None = None) -> Iterator[tuple[Any, Any]]:
    """Yield (task, result) in the order of completion.

    Closing the iterator, or an error, ends all workers at once.

    Args:
        start: Called once in each worker; returns the function that does a task. It and the tasks must pickle.
        num_workers: 0 does everything in this process; None takes a worker for each core that this process may use.

    Raises:
        ValueError: A task raised it, or an OSError.
        RuntimeError: A worker died. Other errors of a task are raised as they are.
    """
    if num_workers is not None and num_workers < 0:
        raise ValueError(f"the number of simulator processes must be at least 0, got {num_workers}")
    count = min(len(os.sched_getaffinity(0)) if num_workers is None else num_workers, len(tasks))
    if count == 0:
        work = start() if tasks else None
        for task in tasks:
            yield task, work(task)
        return
    others = set(multiprocessing.active_children())
    executor = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _start_worker)
    try:
        with environment_variables({name: "1" for name in ONE_THREAD if name not in os.environ}):
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
    has_bar = sys.stderr.isatty()
    for count, result in enumerate(tqdm(results, verb, total, unit="episode", disable=not has_bar), 1):
        if not has_bar and count * 10 // total > (count - 1) * 10 // total:
            report(f"{verb} {count} of {total} episodes")
        yield result


@contextmanager
def environment_variables(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables in this block, and for the processes that it starts."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            del os.environ[name]
        os.environ.update({name: value for name, value in before.items() if value is not None})
