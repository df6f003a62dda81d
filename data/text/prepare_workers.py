"""Worker processes that do tasks in parallel and hand the results back in order.

A worker is a fresh interpreter that reads tasks from a pipe of its own. It ends when that pipe does, so it outlives
neither a finished preparation nor a killed one.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

# A worker on every core: threads of its own would only make them wait for one another.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
TASKS_AHEAD = 3  # tasks a worker, waiting, running or done: enough that none waits for a slow neighbour

Start = Callable[[], Callable[[Any], Any]]


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(start: Start, tasks: Iterable[Any], num_workers: int) -> Iterator[tuple[Any, Any]]:
    """Yields (task, result) in the order of the tasks, which are taken only as they can be worked on.

    `start` is called once in each worker and returns the function that does a task; both it and the tasks must pickle.
    With one worker everything happens in this process. Closing the iterator, or an error, ends all workers at once.

    Raises:
        ValueError: a task raised it: its message.
        RuntimeError: a task raised something else, its traceback in the message, or a worker died.
    """
    if num_workers == 1:
        work = start()
        for task in tasks:
            yield task, work(task)
        return
    idle: queue.SimpleQueue[Connection] = queue.SimpleQueue()
    processes = []
    threads = ThreadPoolExecutor(num_workers)  # each waits for one worker; this thread reads and writes meanwhile

    def hand_out(task: Any) -> Any:
        connection = idle.get()
        try:
            connection.send(task)
            return connection.recv()
        finally:
            idle.put(connection)  # also when its worker died: nobody waits for it in vain

    try:
        for _ in range(num_workers):
            connection, process = _started(start)
            processes.append(process)
            idle.put(connection)
        waiting: deque[tuple[Any, Future]] = deque()
        for task in tasks:
            waiting.append((task, threads.submit(hand_out, task)))
            if len(waiting) >= TASKS_AHEAD * num_workers:
                yield _result(*waiting.popleft())
        while waiting:
            yield _result(*waiting.popleft())
    finally:
        for process in processes:
            process.terminate()  # the pipes end, and with them the threads' waiting
            process.join()
        threads.shutdown(cancel_futures=True)


def _started(start: Start) -> tuple[Connection, Any]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(start, theirs), daemon=True)
    with _environment(ONE_THREAD):
        process.start()
    theirs.close()  # so that reading from `ours` ends when the worker dies
    return ours, process


def _result(task: Any, future: Future) -> tuple[Any, Any]:
    try:
        outcome, value = future.result()
    except (EOFError, OSError) as error:
        raise RuntimeError("a worker process died; was memory short?") from error
    if outcome == "error for people":
        raise ValueError(value)
    if outcome == "error":
        raise RuntimeError(f"a worker process failed:\n{value}")
    return task, value


def _serve(start: Start, connection: Connection) -> None:
    """A worker's whole life: tasks come in, results go out, until the pipe ends."""
    # Ctrl-C reaches every process of the terminal; the parent alone handles it, and ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    work = None
    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        while True:
            task = connection.recv()
            try:
                work = work or start()
                message = ("done", work(task))
            except ValueError as error:
                message = ("error for people", str(error))
            except Exception:
                message = ("error", traceback.format_exc())
            connection.send(message)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Environment variables for processes started meanwhile; a user's own values stay."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
