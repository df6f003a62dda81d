"""One run at a time in a folder: `.run.lock` says who holds it, and a number in it grows while its holder lives.

    {"host": "node7", "machine": "…", "boot": "…", "pids": "pid:[4026531836]", "pid": 812, "started": "73110",
     "job": "4711", "restarts": "1", "since": "2026-01-31 12:00:00", "token": "…", "beat": "000000000017"}

A lock that its holder has left behind is taken over. Which ones those are:

- Same host name and same boot, in the same namespace of processes: the process is gone, or its number belongs to one
  that started at another time. Same host name and machine id, another boot. Taken over at once.
- The same Slurm job before it was requeued (same job id, another restart count): its processes are gone. At once.
- Anything else: another machine, a container beside this one, a lock file nobody can read. Nobody here can ask for its
  process, so its file is watched for WATCH seconds and taken over only if not a byte of it changed. A live holder
  counts `beat` up every BEAT seconds. No two clocks are compared: `since` is for people alone.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from storage import safe_read
from storage.atomic import write_text

try:
    import fcntl
except ImportError:  # not on every system
    fcntl = None

NAME = ".run.lock"
GUARD = ".run.lock.guard"
BEAT, WATCH = 10.0, 35.0  # seconds; a watcher sees at least three beats of a live holder
SETTLE = 2.0  # seconds until a rival's rename must show, on file systems without advisory locks
PATIENCE = 10.0  # seconds to wait for a rival's critical section, which takes milliseconds
LARGEST = 2**16  # bytes of a lock file that are read
DIGITS = 12  # of the beat: the file's length never changes, so that a beat needs no new space on a full disk

_within_process = threading.RLock()  # advisory locks hold between processes only


class Held(ValueError):
    """Another run holds the folder; one line that says who and what to do."""


@dataclass(frozen=True)
class Machine:
    """What tells machines, their boots and their process namespaces apart; an unknown one is an empty text."""

    host: str
    machine: str = ""
    boot: str = ""
    pids: str = ""
    job: str = ""
    restarts: str = ""

    @classmethod
    def here(cls) -> Machine:
        pids = ""
        with contextlib.suppress(OSError):
            pids = os.readlink("/proc/self/ns/pid")
        return cls(
            host=socket.gethostname(),
            machine=_first_line("/etc/machine-id"),
            boot=_first_line("/proc/sys/kernel/random/boot_id"),
            pids=pids,
            job=os.environ.get("SLURM_JOB_ID", ""),
            restarts=os.environ.get("SLURM_RESTART_COUNT", ""),
        )


class RunLock:
    """The right to train into a folder.

        with RunLock(folder):  # or take() … release()
            train()

    A process that holds a folder may take it again, also through another RunLock: the older one is then lost. Processes
    forked from the holder neither beat nor release.

    Args:
        folder: Made by `take` if it is not there.
        machine: Where this process counts as running.
        beat: Seconds between two signs of life.
        watch: Seconds for which a lock that cannot be judged is watched; several beats.

    Attributes:
        lost: Whether somebody else took the folder over, which a live holder suffers only if it was stopped for longer
            than `watch`. It should write nothing more.
    """

    def __init__(
        self, folder: Path, *, machine: Machine | None = None, beat: float = BEAT, watch: float = WATCH
    ) -> None:
        self.folder, self.path = Path(folder), Path(folder) / NAME
        self.machine = machine or Machine.here()
        self.beat, self.watch = beat, watch
        self.token, self.pid, self.lost = "", 0, False
        self.stopped = threading.Event()
        self.thread: threading.Thread | None = None
        self.unmoved: bytes | None = None  # the content that stood still for as long as it was watched

    def check(self) -> None:
        """Raises Held if somebody else holds the folder. Writes nothing; may take `watch` seconds."""
        while True:
            content = self._content()
            if content is None or self._may_take(content):
                return
            self._watch(content)

    def take(self) -> None:
        """Holds the folder until `release` or the process's end.

        Raises:
            Held: somebody else does.
            OSError: the folder cannot be written to.
        """
        if self._is_ours():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        while (content := self._try()) is not None:
            self._watch(content)
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._keep_beating, args=(self.stopped,), name="run lock", daemon=True)
        self.thread.start()

    def release(self) -> None:
        """Lets go; the file goes only if it is still ours. In a forked child, and where nothing is held: nothing."""
        if self.pid != os.getpid():
            return
        self.stopped.set()
        if self.thread is not None and self.thread is not threading.current_thread():
            self.thread.join(5)
        with contextlib.suppress(OSError), self._alone():
            if self._is_ours():
                self.path.unlink()
        self.token, self.pid = "", 0

    def __enter__(self) -> RunLock:
        self.take()
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    # ---- taking ----

    def _try(self) -> bytes | None:
        """Takes the folder if it is free or left behind; else what its lock file holds now, which must be watched."""
        with self._alone() as is_guarded:
            content = self._content()
            if content is not None and not self._may_take(content):
                return content
            token = uuid.uuid4().hex
            write_text(self.path, self._text(token))
            if not is_guarded:
                time.sleep(SETTLE)
            now = self._content()
            if _facts(now).get("token") != token:
                raise self._held(now)
            self.token, self.pid, self.lost, self.unmoved = token, os.getpid(), False, None
        return None

    def _may_take(self, content: bytes) -> bool:
        """Whether a lock is left behind, or this process's own. False: it must be watched.

        Raises:
            Held: its process runs on this machine.
        """
        if content == self.unmoved:
            return True
        them, me = _facts(content), self.machine
        same = {name for name, value in asdict(me).items() if them.get(name) == value}
        if me.job and "job" in same and "restarts" not in same:
            return True
        if "host" in same and "boot" not in same:
            return bool(me.machine) and "machine" in same
        pid, started = them.get("pid"), them.get("started")
        if not {"host", "boot", "pids"} <= same or type(pid) is not int or pid < 1:
            return False
        is_another = "" not in (started, began := process_start(pid)) and began != started
        if pid == os.getpid() or is_another or not is_alive(pid):
            return True
        raise self._held(content)

    def _watch(self, content: bytes) -> None:
        """Looks at a lock file until it changes, which a live holder's does.

        Raises:
            Held: it did.
        """
        who = _who(_facts(content))
        line = f"{self.folder} is locked by {who}; waiting {self.watch:g} s to see whether it is still there"
        print(line, file=sys.stderr, flush=True)
        looks = math.ceil(self.watch / min(1.0, self.beat))
        for _ in range(looks):  # counted, not timed: where this process is stopped too, the holder gets its time
            time.sleep(self.watch / looks)
            if (now := self._content()) != content:
                if now is None:  # released meanwhile
                    return
                raise self._held(now)
        self.unmoved = content

    def _held(self, content: bytes | None) -> Held:
        remedy = f"wait for it, end it, or name another --output_dir; if it surely is gone, delete {self.path}"
        return Held(f"{self.folder} is in use: {_who(_facts(content))} trains there; {remedy}")

    def _text(self, token: str) -> str:
        pid = os.getpid()
        facts = asdict(self.machine) | {"pid": pid, "started": process_start(pid)}
        facts |= {"since": time.strftime("%Y-%m-%d %H:%M:%S"), "token": token, "beat": "0" * DIGITS}
        return json.dumps(facts) + "\n"

    def _content(self) -> bytes | None:
        """The lock file's bytes; None: there is none. What cannot be read counts as a file of that error's text."""
        try:
            return safe_read.read(self.path, LARGEST)  # opened anew it shows what other machines wrote, on NFS too
        except FileNotFoundError:
            return None
        except OSError as error:
            return f"{error.strerror} {self._changed_at()}".encode()

    def _changed_at(self) -> int:
        """When a file that this user may not read was changed: there its holder's beat shows. Compared with itself."""
        try:
            return os.stat(self.path).st_mtime_ns
        except OSError:
            return 0

    def _is_ours(self) -> bool:
        return bool(self.token) and self.pid == os.getpid() and _facts(self._content()).get("token") == self.token

    @contextlib.contextmanager
    def _alone(self) -> Iterator[bool]:
        """Inside, no other process is inside; True if the file system can promise that."""
        with _within_process:
            guard = _guarded(self.folder / GUARD)
            try:
                yield guard is not None
            finally:
                if guard is not None:
                    with contextlib.suppress(OSError):
                        os.unlink(self.folder / GUARD)
                    os.close(guard)

    # ---- beating ----

    def _keep_beating(self, stopped: threading.Event) -> None:
        """The holder's thread: a full disk or one that has become read-only stops the beat, not the training."""
        count = 0
        while not stopped.wait(self.beat):
            count += 1
            try:
                is_ours = self._beat_once(count)
            except (OSError, ValueError):
                continue
            if not is_ours and not stopped.is_set():
                self.lost = True
                line = (
                    f"warning: {self.folder} was taken over by {_who(_facts(self._content()))}: this run lost its lock"
                )
                print(line, file=sys.stderr, flush=True)
                return

    def _beat_once(self, count: int) -> bool:
        """Counts the beat up in the very file that holds our token; False: another's lies there.

        The number is overwritten in place. If somebody renames a file of theirs over ours meanwhile, what we write goes
        into the one that has no name any more.
        """
        try:
            descriptor = os.open(self.path, os.O_RDWR | safe_read.AT_ONCE)
        except FileNotFoundError:  # deleted by hand
            return self._put_back()
        try:
            content = os.read(descriptor, LARGEST)
            facts = _facts(content)
            if facts.get("token") != self.token:
                return not facts and self._put_back()
            text = json.dumps(facts | {"beat": f"{count:0{DIGITS}d}"}) + "\n"
            os.pwrite(descriptor, text.encode(), 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return True

    def _put_back(self) -> bool:
        """Writes a lock file that was deleted or damaged anew, unless somebody else was faster."""
        with self._alone():
            if facts := _facts(self._content()):
                return facts.get("token") == self.token
            if self.folder.is_dir():
                write_text(self.path, self._text(self.token))
        return True


def process_start(pid: int) -> str:
    """When a process began, in clock ticks since the boot; empty where the system does not tell."""
    try:
        # Field 2 is the program's name in brackets, and may hold anything.
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def is_alive(pid: int) -> bool:
    """Whether a process of this machine runs; one that has ended and waits for its parent to notice does not."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return True
    return state not in "ZX"


def _guarded(path: Path) -> int | None:
    """A descriptor of the guard file under an exclusive advisory lock; None where there are no such locks.

    Whoever leaves deletes the file, so a lock counts only if the file still has its name.
    """
    if fcntl is None:
        return None
    for _ in range(math.ceil(PATIENCE / 0.02)):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:  # a full disk, a folder that is not ours: whoever writes next hears of it
            return None
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except (BlockingIOError, PermissionError, FileNotFoundError):
            pass  # somebody is inside, or has just left
        except OSError:  # a file system without locks
            os.close(descriptor)
            return None
        os.close(descriptor)
        time.sleep(0.02)
    return None  # held by nobody who lives, as far as one can tell: a lost client of a network file system


def _facts(content: bytes | None) -> dict[str, Any]:
    """What a lock file says; nothing if it is damaged."""
    try:
        facts = json.loads(content or b"")
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _who(facts: dict[str, Any]) -> str:
    if not facts:
        return "a lock file that cannot be read"
    said = f"process {facts.get('pid')} on {facts.get('host')} (since {facts.get('since')})"
    return "".join(letter if letter.isprintable() else "?" for letter in said)


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
