"""Run tasks on several processes, in order.

A worker is a fresh interpreter: it inherits no thread, no lock, no OpenGL context and no GPU state. It imports
`__main__` again, so a script that starts workers needs the `if __name__ == "__main__":` guard.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

TASKS_AHEAD = 3  # tasks per worker that wait, run or are done: enough that none waits for a slow neighbour

Start = Callable[[], Callable[[Any], Any]]


def run(
    start: Start, tasks: Iterable[Any], num_workers: int, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[Any, Any]]:
    """Yield (task, result) in the order of the tasks, which are read only as they can be worked on.

    Closing the iterator, or an error, ends all workers at once; an error of a task is raised as it is.

    Args:
        start: Called once in each worker; returns the function that does a task. It and the tasks must pickle.
        num_workers: 0 does everything in this process, and so does any number in a program read from standard input,
            which a worker cannot import.
        environment: Environment variables of the workers, where they are not set already.

    Raises:
        RuntimeError: A worker died.
    """
    main = getattr(sys.modules["__main__"], "__file__", None)
    if num_workers == 0 or (main is not None and not os.path.exists(main)):
        work = None
        for task in tasks:
            work = work or start()
            yield task, work(task)
        return
    variables = {name: value for name, value in (environment or {}).items() if name not in os.environ}
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn"), _start_worker)
    waiting: deque = deque()
    try:
        for task in tasks:
            with environment_variables(variables):
                waiting.append((task, pool.submit(_work, start, task)))
            if len(waiting) >= TASKS_AHEAD * num_workers:
                done, future = waiting.popleft()
                yield done, future.result()
        for done, future in waiting:
            yield done, future.result()
    except BaseException as error:  # GeneratorExit too; workers that have done their tasks end by themselves
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        # One that ends in the middle of a result leaves a piece of it: the pool must not wait for the rest.
        pool._result_queue._writer.close()
        if isinstance(error, BrokenProcessPool):
            raise RuntimeError("a worker process died; was memory short?") from error
        raise
    finally:
        pool.shutdown(cancel_futures=True)


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


@contextmanager
def environment_variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables in this block, and for the processes that it starts."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            del os.environ[name]
        os.environ.update({name: value for name, value in before.items() if value is not None})
