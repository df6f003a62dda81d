"""Write and delete checkpoints on background threads: staged, verified by a manifest, published by one rename."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from tqdm import tqdm

from storage import manifest
from storage.atomic import apply_umask, discard, hide, publish, sync

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
PATIENCE = 1800.0  # seconds for which rank 0 waits for the files of the other ranks
LAST_PATIENCE = 10.0  # the same when the run ends


class SavesFailed(RuntimeError):
    """Too many checkpoints in a row could not be written."""

    exit_code = 1  # of the command line


@dataclass(frozen=True)
class Save:
    """One checkpoint to be written.

    Attributes:
        step: Optimizer step.
        staged, final: Staging folder, and the folder that it is renamed to.
        write: Writes the files of this rank into a folder.
        facts: JSON values for the manifest: `world_size` and others.
        awaited: Names of the files that mark the parts of other ranks as written; each appears by one rename.
        publishes: Whether this rank writes the manifest and publishes the folder (rank 0 only).
        logs: Files that are synced to disk before the checkpoint is published, because a resume relies on their lines.
        abandoned: Set if another rank could not write its part: waiting for it is useless.
    """

    step: int
    staged: Path
    final: Path
    write: Callable[[Path], None]
    facts: dict[str, Any]
    awaited: Sequence[str] = ()
    publishes: bool = True
    logs: Sequence[Path] = ()
    abandoned: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class SaveResult:
    """The end of a save: `error` is None if the checkpoint was written."""

    final: Path
    error: BaseException | None


class CheckpointWriter:
    """Writes one checkpoint at a time: `begin`, then `poll` until it returns the SaveResult.

    Args:
        in_background: Write on a thread; otherwise `begin` returns when the checkpoint is written.
        deletions: Waited for before anything is written: the disk may not have room for both checkpoints.
    """

    def __init__(self, in_background: bool = True, deletions: BackgroundDeletions | None = None):
        self.in_background = in_background
        self.deletions = deletions
        self.thread: threading.Thread | None = None
        self.result: SaveResult | None = None
        self.save: Save | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a save was begun whose result has not been fetched."""
        return self.thread is not None or self.result is not None

    def begin(self, save: Save) -> None:
        """Start a save; the result of the previous one must have been fetched."""
        assert not self.is_busy, "a save is being written"
        self.save = save
        if not self.in_background:
            self._run(save)
            return
        # Not a daemon: a process that ends normally completes the checkpoint first.
        self.thread = threading.Thread(target=self._run, args=(save,), name=f"save {save.final.name}")
        self.thread.start()

    def poll(self, wait: bool = False) -> SaveResult | None:
        """Return the result of the save, once; None: there is no save, or it is still being written.

        Args:
            wait: Block until it is written.
        """
        if self.thread is not None:
            if wait:
                self.thread.join()
            if self.thread.is_alive():
                return None
            self.thread = None
        result, self.result = self.result, None
        return result

    def abandon_soon(self) -> None:
        """Stop waiting for other ranks after LAST_PATIENCE seconds: the run ends, and they may be gone."""
        if self.thread is not None:
            timer = threading.Timer(LAST_PATIENCE, self.save.abandoned.set)
            timer.daemon = True
            timer.start()

    def _run(self, save: Save) -> None:
        error = None
        try:
            if self.deletions is not None:
                self.deletions.wait()
            write(save)
        except BaseException as caught:  # handled by the training thread, see `CheckpointManager`
            error = caught
        self.result = SaveResult(save.final, error)


def write(save: Save) -> None:
    """Write a checkpoint. Whatever happens, `save.final` is complete, unchanged or absent.

    If it fails, the staging folder is deleted here if this rank alone writes it. If several ranks write it, none knows
    whether the others still do: `CheckpointManager` deletes it on each of them.
    """
    try:
        save.staged.mkdir(parents=True, exist_ok=True)
        save.write(save.staged)
        if save.publishes:
            _wait_for_other_ranks(save)
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


def _wait_for_other_ranks(save: Save) -> None:
    """Poll for the files of the other ranks: on this thread the folder is the only thing that ranks share."""
    deadline = time.monotonic() + PATIENCE
    missing = list(save.awaited)
    while missing := [name for name in missing if not (save.staged / name).is_file()]:
        if save.abandoned.is_set() or time.monotonic() > deadline:
            raise TimeoutError(errno.ETIMEDOUT, f"another process did not write {missing[0]}", str(save.staged))
        time.sleep(0.05)


class BackgroundDeletions:
    """Rename a folder now; delete its files on a background thread (that may take seconds for a large checkpoint).

    The thread does not delay the end of the process. What is left then has a hidden name; the next start deletes it
    (`storage.checkpoints.sweep`).

    Args:
        in_background: Otherwise `delete` returns when the files are deleted.
    """

    def __init__(self, in_background: bool = True):
        self.in_background = in_background
        self.threads: list[threading.Thread] = []

    def delete(self, folder: Path) -> None:
        """Delete a folder; nothing happens if it does not exist.

        Raises:
            OSError: the folder cannot be renamed; it stays as it is.
        """
        hidden = hide(folder)
        if hidden is not None:
            thread = threading.Thread(target=_delete, args=(hidden,), name="deletion", daemon=True)
            thread.start()
            self.threads = [*(thread for thread in self.threads if thread.is_alive()), thread]
            if not self.in_background:
                thread.join()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until everything is deleted, at most about `timeout` seconds; whether it is."""
        for thread in self.threads:
            thread.join(timeout)
        return not any(thread.is_alive() for thread in self.threads)


def _delete(folder: Path) -> None:
    discard(folder)
    if os.path.lexists(folder):
        with contextlib.suppress(OSError, ValueError):  # stderr may be closed
            tqdm.write(f"{folder} could not be deleted; the next start tries again", file=sys.stderr)


def is_storage_error(error: BaseException) -> bool:
    """Whether a save failed because of the disk and not because of a bug."""
    return isinstance(error, (OSError, SafetensorError))


def failure_line(result: SaveResult, failed: int, allowed: int, last_good: str | None) -> str:
    """Return the line that is printed when a save fails."""
    error = result.error
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    if getattr(error, "errno", None) in DISK_FULL or "No space left" in reason:
        with contextlib.suppress(OSError):
            reason += f" ({shutil.disk_usage(result.final.parent).free / 2**20:.0f} MB free in {result.final.parent})"
    return (
        f"ERROR: {result.final.name} could not be saved: {reason}. Training continues (last complete checkpoint: "
        f"{last_good or 'none'}); failed saves in a row: {failed}, the run ends at {allowed} (max_failed_saves)"
    )
