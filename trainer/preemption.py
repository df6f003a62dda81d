"""Preemption: a signal sets a flag, all processes agree at the end of a step, the state is saved, exit code 75.

Clusters and launchers send SIGTERM, schedulers SIGUSR1 before a job's time limit if the job asks for it, Ctrl-C sends
SIGINT. During set-up the process exits at once. During training the handler only sets a flag, because in the middle of
a step the state is not consistent.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

EXIT_CODE = 75  # sysexits' «temporary failure»: run it again
INTERRUPTED = 130  # as in shells: 128 + SIGINT
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Preempted(BaseException):
    """The run was preempted. Not an Exception, so that no error handler catches it. `train.main` prints its line.

    Attributes:
        step: Of the checkpoint with the state; None: training had not begun.
        saved: Whether that checkpoint could be written.
    """

    exit_code, problems = EXIT_CODE, ()

    def __init__(self, signal_name: str, step: int | None = None, saved: bool = True):
        self.signal_name, self.step, self.saved = signal_name, step, saved
        super().__init__(self.line())

    def line(self, resumes_by_itself: bool = True) -> str:
        """Return the line that the run prints when it exits.

        Args:
            resumes_by_itself: Whether the command that started the run takes the newest checkpoint.
        """
        if not self.step:
            return f"preempted by {self.signal_name} before the first step: the same command starts again"
        if not self.saved:
            return f"preempted by {self.signal_name} at step {self.step}, which could not be saved"
        how = "the same command resumes the run" if resumes_by_itself else "resume with --resume_from_checkpoint auto"
        return f"preempted by {self.signal_name} at step {self.step}: saved checkpoint-{self.step}; {how} from there"


def exit_on_signal() -> None:
    """Let signals end the process at once, until `Signals` replaces these handlers."""
    for number in SIGNALS:
        signal.signal(number, _exit)


def _exit(number: int, frame: Any) -> None:
    if os.environ.get("RANK", "0") == "0":
        os.write(1, f"{Preempted(signal.Signals(number).name)}\n".encode())
    os._exit(EXIT_CODE)


class Signals:
    """The signal handlers of a run, installed inside `with`; afterwards the previous ones are restored.

    Outside of `deferred` a signal raises Preempted; inside, it only sets `received`. The second SIGINT ends the process
    at once.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self.is_interrupted = False
        self.is_deferred = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self.before = {}

    def _handle(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT and self.is_interrupted:
            os.write(2, b"interrupted twice: leaving at once, the last checkpoint stands\n")
            os._exit(INTERRUPTED)
        self.is_interrupted |= number == signal.SIGINT
        is_first, self.received = self.received is None, signal.Signals(number).name
        if is_first and not self.is_deferred:
            raise Preempted(self.received)

    def check(self) -> None:
        """Raise Preempted if a signal was received; an earlier one may have been caught by other code."""
        if self.received is not None:
            raise Preempted(self.received)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal only sets `received`, which the training loop polls when it can save."""
        before, self.is_deferred = self.is_deferred, True
        try:
            yield
        finally:
            self.is_deferred = before


def ignore_signals() -> None:
    """Ignore SIGNALS from now on."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class IgnoringSignals:
    """A `worker_init_fn` for dataloaders: workers end with training, not when the job's process group gets a signal.

    Their parent can still end them with SIGTERM, as torch and multiprocessing do with workers that hang.

    Args:
        inner: Called as well; picklable, for workers that are not forked.
    """

    def __init__(self, inner: Callable[[int], None] | None):
        self.inner = inner

    def __call__(self, worker: int) -> None:
        obey_only_parent()
        if self.inner is not None:
            self.inner(worker)


def obey_only_parent() -> None:
    """In a child process: of SIGNALS only a SIGTERM from the parent has an effect, and ends it."""
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: None)  # not SIG_IGN: `sigwaitinfo` cannot wait for ignored signals
    if not hasattr(signal, "sigwaitinfo"):  # not available on every system; then the parent has to kill it
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=_wait_for_parent, args=(os.getppid(),), name="signals", daemon=True).start()


def _wait_for_parent(parent: int) -> None:
    while True:
        received = signal.sigwaitinfo(SIGNALS)
        if received.si_signo == signal.SIGTERM and received.si_pid == parent:
            os._exit(0)
