"""Locks: one run at a time in a folder (`RunLock`), and short critical sections between processes (`exclusive`).

`.run.lock` in a run's folder names the process that holds it; its `beat` grows while that process lives:

    {"host": "node7", "boot": "…", "pids": "pid:[4026531836]", "pid": 812, "started": "73110", "job": "4711",
     "restarts": "1", "since": "2026-01-31 12:00:00", "token": "…", "beat": "000000000017"}

A lock whose holder is dead is taken over:

- At once if the holder ran on this machine, in this boot and PID namespace, and its process is gone or its PID belongs
  to a process with another start time.
- At once if the holder was the same Slurm job before a requeue (same job id, another restart count).
- In all other cases (another machine or boot, another container, a damaged file) the holder's process cannot be checked
  from here. The file is watched for WATCH seconds and taken over if it did not change; a live holder writes `beat`
  every BEAT seconds. Clocks of two machines are never compared: `since` is shown to users only.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from storage import safe_read
from storage.atomic import write_text
from storage.safe_read import printable

NAME = ".run.lock"
GUARD = ".run.lock.guard"
BEAT, WATCH = 10.0, 35.0  # seconds; a watcher sees at least three beats of a live holder
SETTLE = 2.0  # seconds until the rename of a competing process is visible, on file systems without advisory locks
PATIENCE = 10.0  # seconds to wait for the critical section of another process, which takes milliseconds
MAX_BYTES = 2**16  # of a lock file
BEAT_DIGITS = 12  # the file's length never changes, so that a beat needs no space on a full disk


class FolderInUse(ValueError):
    """Another run holds the folder; the text is one line with the holder and the remedy."""


def machine_identity() -> dict[str, str]:
    """Return what identifies this machine, its boot, its PID namespace and its Slurm job; unknown values are empty."""
    pids = boot = ""
    with contextlib.suppress(OSError):  # the system has no /proc
        pids = os.readlink("/proc/self/ns/pid")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    job, restarts = (os.environ.get(f"SLURM_{name}", "") for name in ("JOB_ID", "RESTART_COUNT"))
    return {"host": socket.gethostname(), "boot": boot, "pids": pids, "job": job, "restarts": restarts}


class RunLock:
    """The exclusive right to train into a folder.

        with RunLock(folder):  # or take() … release()
            train()

    A process that holds a folder may take it again through another RunLock; the first one is then lost. Forked children
    of the holder neither write beats nor release.

    Args:
        folder: Created by `take` if it is missing.
        machine: Values of `machine_identity` for the machine on which this process counts as running.
        beat: Seconds between two beats.
        watch: Seconds for which a lock is watched whose holder cannot be checked; several beats.

    Attributes:
        lost: Whether another run has taken the folder over. A live holder loses it only if it was suspended for longer
            than `watch`; it must not write anything then.
    """

    def __init__(
        self, folder: Path, *, machine: dict[str, str] | None = None, beat: float = BEAT, watch: float = WATCH
    ) -> None:
        self.folder, self.path = Path(folder), Path(folder) / NAME
        self.machine = machine or machine_identity()
        self.beat, self.watch = beat, watch
        self.token, self.pid, self.lost = "", 0, False
        self.released = threading.Event()
        self.thread: threading.Thread | None = None
        self.unchanged: bytes | None = None  # content of the lock file that did not change while it was watched

    def check(self) -> None:
        """Raise FolderInUse if another run holds the folder. Writes nothing; may take `watch` seconds."""
        while (content := self._content()) is not None and not self._may_take(content):
            self._watch(content)

    def take(self) -> None:
        """Hold the folder until `release` or until the process ends.

        Raises:
            FolderInUse: another run holds it.
            OSError: the folder cannot be written to.
        """
        if self._is_held_here():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        while (content := self._try()) is not None:
            self._watch(content)
        self.released = threading.Event()
        self.thread = threading.Thread(target=self._keep_beating, args=(self.released,), name="run lock", daemon=True)
        self.thread.start()

    def release(self) -> None:
        """Delete the lock file if this process holds the folder; do nothing otherwise, also in a forked child."""
        if self.pid != os.getpid():
            return
        self.released.set()
        if self.thread is not None and self.thread is not threading.current_thread():
            self.thread.join(5)
        with contextlib.suppress(OSError), self._alone():
            if self._is_held_here():
                self.path.unlink()
        self.token, self.pid = "", 0

    def __enter__(self) -> RunLock:
        self.take()
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    # ---- taking ----

    def _try(self) -> bytes | None:
        """Take the folder if it is free; otherwise return the content of the lock file, which must be watched."""
        with self._alone() as is_exclusive:
            content = self._content()
            if content is not None and not self._may_take(content):
                return content
            token = uuid.uuid4().hex
            write_text(self.path, self._new_content(token))
            if not is_exclusive:
                time.sleep(SETTLE)
            content = self._content()
            if _facts(content).get("token") != token:
                raise self._in_use(content)
            self.token, self.pid, self.lost, self.unchanged = token, os.getpid(), False, None
        return None

    def _may_take(self, content: bytes) -> bool:
        """Whether a lock's holder is dead or is this process. False: that is unknown, and the file must be watched.

        Raises:
            FolderInUse: the holder's process runs on this machine.
        """
        if content == self.unchanged:
            return True
        holder, here = _facts(content), self.machine
        equal = {name for name, value in here.items() if holder.get(name) == value}
        if here["job"] and "job" in equal and "restarts" not in equal:
            return True
        pid, started = holder.get("pid"), holder.get("started")
        if not {"host", "boot", "pids"} <= equal or type(pid) is not int or pid < 1:
            return False
        now_started = process_start(pid)
        is_reused = "" not in (started, now_started) and now_started != started
        if pid == os.getpid() or is_reused or not is_alive(pid):
            return True
        raise self._in_use(content)

    def _watch(self, content: bytes) -> None:
        """Return when the lock file is deleted, or has not changed for `watch` seconds.

        Raises:
            FolderInUse: it changed: its holder is alive.
        """
        line = f"{self.folder} is locked by {_holder(content)}; waiting {self.watch:g} s to see whether it still runs"
        print(line, file=sys.stderr, flush=True)
        polls = math.ceil(self.watch / min(1.0, self.beat))
        for _ in range(polls):  # counted, not timed: while this process is suspended, the holder may be too
            time.sleep(self.watch / polls)
            if (now := self._content()) != content:
                if now is None:
                    return
                raise self._in_use(now)
        self.unchanged = content

    def _in_use(self, content: bytes | None) -> FolderInUse:
        remedy = f"wait for it, end it, or name another --output_dir; if it no longer runs, delete {self.path}"
        return FolderInUse(f"{self.folder} is in use by {_holder(content)}; {remedy}")

    def _new_content(self, token: str) -> str:
        pid = os.getpid()
        facts = self.machine | {"pid": pid, "started": process_start(pid)}
        facts |= {"since": time.strftime("%Y-%m-%d %H:%M:%S"), "token": token, "beat": "0" * BEAT_DIGITS}
        return json.dumps(facts) + "\n"

    def _content(self) -> bytes | None:
        """The lock file's bytes; None: there is no such file."""
        try:
            return safe_read.read(self.path, MAX_BYTES)  # on NFS, opening the file fetches what other machines wrote
        except FileNotFoundError:
            return None
        except PermissionError as error:
            raise FolderInUse(f"{self.path} belongs to another user; name another --output_dir") from error

    def _is_held_here(self) -> bool:
        return bool(self.token) and self.pid == os.getpid() and _facts(self._content()).get("token") == self.token

    @contextlib.contextmanager
    def _alone(self) -> Iterator[bool]:
        """Exclude other processes that take or release this folder; False: the file system cannot do that."""
        guard = self.folder / GUARD
        with exclusive(guard, patience=PATIENCE) as is_exclusive:
            try:
                yield is_exclusive
            finally:
                if is_exclusive:
                    guard.unlink(missing_ok=True)

    # ---- beating ----

    def _keep_beating(self, released: threading.Event) -> None:
        """Write beats until the release. A full or read-only disk stops the beats, not the training."""
        count = 0
        while not released.wait(self.beat):
            count += 1
            with contextlib.suppress(OSError):  # a full or read-only disk, a deleted file
                if not self._beat_once(count) and not released.is_set():
                    self.lost = True
                    line = (
                        f"warning: {self.folder} was taken over by {_holder(self._content())}: this run lost its lock"
                    )
                    print(line, file=sys.stderr, flush=True)
                    return

    def _beat_once(self, count: int) -> bool:
        """Overwrite the beat in the lock file; False: the file belongs to another run.

        The file is changed in place: if another run renames its own file over it meanwhile, the beat goes into a file
        that has no name any more.

        Raises:
            OSError: a full or read-only disk, or a user has deleted the file.
        """
        with open(self.path, "r+b", buffering=0) as file:
            facts = _facts(file.read(MAX_BYTES))
            if facts.get("token") == self.token:
                text = json.dumps(facts | {"beat": f"{count:0{BEAT_DIGITS}d}"}) + "\n"
                os.pwrite(file.fileno(), text.encode(), 0)
                os.fsync(file.fileno())
        return facts.get("token") in (None, self.token)


@contextlib.contextmanager
def exclusive(path: Path, *, message: str = "", patience: float = math.inf) -> Iterator[bool]:
    """Hold an advisory lock on a file; the lock ends with the block or with the process.

    It excludes other processes, but not other threads of this one.

    Args:
        path: The lock file, created if it is missing. The holder may delete it.
        message: Printed to stderr once if another process holds the lock.
        patience: Seconds to wait for another holder.

    Yields:
        Whether the lock is held. False: the file system has no advisory locks (some network file systems), or another
        process held the lock for longer than `patience`.

    Raises:
        OSError: the file cannot be created.
    """
    deadline = time.monotonic() + patience
    descriptor, is_held = os.open(path, os.O_RDWR | os.O_CREAT, 0o666), False
    try:
        while not is_held:
            try:
                # Not flock(), which some NFS mounts apply to one machine only.
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                if message:
                    print(message, file=sys.stderr, flush=True)
                    message = ""
                if time.monotonic() > deadline:
                    break
                time.sleep(0.02)
            except OSError:
                break
            else:
                with contextlib.suppress(FileNotFoundError):
                    is_held = os.path.samestat(os.fstat(descriptor), os.stat(path))
                if not is_held:  # the previous holder has deleted this file
                    os.close(descriptor)
                    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        yield is_held
    finally:
        os.close(descriptor)


def process_start(pid: int) -> str:
    """Return when a process began, in clock ticks since the boot; empty if the system does not say."""
    fields = _process_fields(pid)
    return fields[19] if len(fields) > 19 else ""


def is_alive(pid: int) -> bool:
    """Whether a process of this machine runs; a zombie does not."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # a process of another user
        pass
    return _process_fields(pid)[:1] not in (["Z"], ["X"])


def _process_fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the program's name, which is in brackets and may hold anything."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _facts(content: bytes | None) -> dict[str, Any]:
    """The values in a lock file; none if it is missing or damaged."""
    try:
        facts = json.loads(content or b"")
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _holder(content: bytes | None) -> str:
    """The holder of a lock as a message shows it."""
    facts = _facts(content)
    if not facts:
        return "an unreadable lock file"
    return printable(f"process {facts.get('pid')} on {facts.get('host')} (since {facts.get('since')})")
