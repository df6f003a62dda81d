"""Runs the episodes of a recording or a scoring on several processes.

A worker is a fresh interpreter: it inherits no OpenGL context, no lock and no GPU state. `__main__` is
imported again there, so a script that starts workers needs the `if __name__ == "__main__":` guard.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

# One thread a worker, in array libraries and in Mesa's software OpenGL: with a worker on every core, more
# threads only make the workers wait for one another.
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "LP_NUM_THREADS": "1",
}

Start = Callable[[], Callable[[Any], Any]]


def default_workers() -> int:
    """One worker for each core this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run(start: Start, tasks: Sequence[Any], num_workers: int | None = None) -> Iterator[tuple[Any, Any]]:
    """Yields (task, result) as the tasks complete, in any order.

    `start` is called once in each worker and returns the function that does a task; both it and the tasks
    must pickle. `num_workers` 0 does everything in this process, None takes a worker for each core. Closing
    the iterator, or an error, ends all workers at once.

    Raises:
        ValueError: a task raised it (or an OSError): its message.
        RuntimeError: a task raised something else, its traceback in the message, or a worker died.
    """
    if num_workers is not None and num_workers < 0:
        raise ValueError(f"the number of simulator processes must be at least 0, got {num_workers}")
    count = min(default_workers() if num_workers is None else num_workers, len(tasks))
    if count == 0:
        work = start() if tasks else None
        for task in tasks:
            yield task, work(task)
        return
    context = multiprocessing.get_context("spawn")
    processes: dict[Connection, BaseProcess] = {}
    try:
        with _environment(ONE_THREAD):
            for _ in range(count):
                ours, theirs = context.Pipe()
                processes[ours] = context.Process(target=_serve, args=(start, theirs), daemon=True)
                processes[ours].start()
                theirs.close()  # so that reading from `ours` ends when the worker dies
        yield from _dispatch(processes, list(tasks))
    finally:
        for process in processes.values():
            if process.pid is not None:
                process.terminate()
                process.join()


def _dispatch(processes: dict[Connection, BaseProcess], waiting: list[Any]) -> Iterator[tuple[Any, Any]]:
    """Gives a worker its next task when it reports the last one, so a slow task holds up no other."""
    waiting.reverse()
    running: dict[Connection, Any] = {}

    def hand_out(connection: Connection) -> None:
        if waiting:
            running[connection] = waiting.pop()
            with suppress(BrokenPipeError):  # a dead worker is found when its result is read
                connection.send(running[connection])

    for connection in processes:
        hand_out(connection)
    while running:
        for connection in wait(list(running)):
            task = running.pop(connection)
            try:
                outcome, value = connection.recv()
            except (EOFError, ConnectionResetError):
                processes[connection].join()
                code = processes[connection].exitcode
                raise RuntimeError(f"a simulator process died (exit code {code})") from None
            if outcome == "error for people":
                raise ValueError(value)
            if outcome == "error":
                raise RuntimeError(f"a simulator process failed:\n{value}")
            hand_out(connection)
            yield task, value


def _serve(start: Start, connection: Connection) -> None:
    """A worker's whole life: tasks come in, results go out, until the parent ends it."""
    # Ctrl-C reaches every process of the terminal; the parent alone handles it, and ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    work = None
    with suppress(EOFError, BrokenPipeError):  # the parent is gone
        while True:
            task = connection.recv()
            try:
                if work is None:
                    work = start()
                    if "torch" in sys.modules:
                        sys.modules["torch"].set_num_threads(1)
                message = ("done", work(task))
            except (ValueError, OSError) as error:
                message = ("error for people", str(error))
            except Exception:
                message = ("error", traceback.format_exc())
            connection.send(message)


def progress(results: Iterator[Any], total: int, verb: str, report: Callable[[str], None]) -> Iterator[Any]:
    """Passes results on and says how many there were: a bar on a terminal, ten plain lines in a log."""
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
    """Environment variables for processes started meanwhile; a user's own values stay."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
