"""Writes checkpoints beside the training: staged, proven by a manifest, published by one rename, or not at all."""

from __future__ import annotations

import contextlib
import errno
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from storage import manifest
from storage.atomic import apply_umask, publish, sync
from trainer.checkpointing.deletions import Deletions

FULL = (errno.ENOSPC, errno.EDQUOT)
PATIENCE = 1800.0  # seconds that the first process waits for the others' files
LAST_PATIENCE = 10.0  # the same when the run ends


class SavesFailed(RuntimeError):
    """Too many checkpoints in a row could not be written."""


@dataclass(frozen=True)
class Save:
    """A checkpoint on its way to the disk.

    Attributes:
        step: Its number.
        staged, final: Where it is made ready, and where it will stand.
        write: Puts its files into a folder.
        facts: What its manifest says beside the files: `world_size` and others.
        awaited: Files that other processes put there; each is written by one rename.
        publishes: Whether this process makes manifest and rename; of several only one does.
        logs: Brought to the disk before the checkpoint, which stands for their lines.
        given_up: Set where another process could not write its part: there is nothing to wait for.
    """

    step: int
    staged: Path
    final: Path
    write: Callable[[Path], None]
    facts: dict[str, Any]
    awaited: Sequence[str] = ()
    publishes: bool = True
    logs: Sequence[Path] = ()
    given_up: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Outcome:
    """How a save ended: `error` is None, or why there is no checkpoint of that step."""

    step: int
    final: Path
    error: BaseException | None


class CheckpointWriter:
    """One save at a time, in a thread of its own where `in_background`.

    `begin` and then, until it returns an Outcome, `finished`; each save has exactly one Outcome.

    Args:
        deletions: Waited for before anything is written: the disk may have room for the one only without the other.
    """

    def __init__(self, in_background: bool = True, deletions: Deletions | None = None):
        self.in_background = in_background
        self.deletions = deletions
        self.thread: threading.Thread | None = None
        self.outcome: Outcome | None = None
        self.save: Save | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a save was begun whose Outcome has not been fetched."""
        return self.thread is not None or self.outcome is not None

    def begin(self, save: Save) -> None:
        """Starts a save; the one before must have been fetched."""
        assert not self.is_busy, "a save is under way"
        self.save = save
        if not self.in_background:
            self._carry_out(save)
            return
        # Not a daemon: a process that ends of itself first finishes what it was writing.
        self.thread = threading.Thread(target=self._carry_out, args=(save,), name=f"save {save.final.name}")
        self.thread.start()

    def finished(self, wait: bool = False) -> Outcome | None:
        """The Outcome of the save that was begun, once; None: there is none, or it is still being written."""
        if self.thread is not None:
            if wait:
                self.thread.join()
            if self.thread.is_alive():
                return None
            self.thread = None
        outcome, self.outcome = self.outcome, None
        return outcome

    def give_up_soon(self) -> None:
        """Whoever has not written its part by then is no more."""
        if self.thread is not None:
            timer = threading.Timer(LAST_PATIENCE, self.save.given_up.set)
            timer.daemon = True
            timer.start()

    def _carry_out(self, save: Save) -> None:
        error = None
        try:
            if self.deletions is not None:
                self.deletions.wait()
            write(save)
        except BaseException as caught:  # told to the thread that trains, which decides
            error = caught
        self.outcome = Outcome(save.step, save.final, error)


def write(save: Save) -> None:
    """Carries a save out. Whatever happens, `save.final` is whole, as it was before, or absent.

    What a failed save has staged is deleted here where this process alone writes it. Where several do, none can say
    that the others have done writing: `Checkpointing` deletes it on each of them.
    """
    try:
        save.staged.mkdir(parents=True, exist_ok=True)
        save.write(save.staged)
        if save.publishes:
            _await(save)
            apply_umask(save.staged)
            manifest.write(save.staged, step=save.step, **save.facts)
            for path in save.logs:
                if path.is_file():
                    sync(path)
            publish(save.staged, save.final)
    except BaseException:
        if save.publishes and not save.awaited:
            shutil.rmtree(save.staged, ignore_errors=True)
        raise


def _await(save: Save) -> None:
    """Waits for what other processes write; they share no clock and no connection here, only the folder."""
    deadline = time.monotonic() + PATIENCE
    missing = list(save.awaited)
    while missing := [name for name in missing if not (save.staged / name).is_file()]:
        if save.given_up.is_set() or time.monotonic() > deadline:
            raise TimeoutError(errno.ETIMEDOUT, f"another process did not write {missing[0]}", str(save.staged))
        time.sleep(0.05)


def is_storage_error(error: BaseException) -> bool:
    """Whether a save failed because of the disk and not because of a mistake in the program."""
    return isinstance(error, (OSError, SafetensorError))


def failure_line(outcome: Outcome, failed: int, allowed: int, last_good: str | None) -> str:
    """One line that nobody overlooks."""
    error = outcome.error
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    if getattr(error, "errno", None) in FULL or "No space left" in reason:
        with contextlib.suppress(OSError):
            reason += f" ({shutil.disk_usage(outcome.final.parent).free / 2**20:.0f} MB free in {outcome.final.parent})"
    kept = f"{last_good} is kept" if last_good else "there is none yet"
    return (
        f"ERROR: {outcome.final.name} could not be saved: {reason}. Training goes on; last good one: {kept}; "
        f"failed saves in a row: {failed}, the run ends at {allowed} (max_failed_saves)"
    )
