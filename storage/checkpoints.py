"""The names of checkpoints, of those that are being written, and what killed processes leave of them."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

from storage.atomic import LEAVING, REPLACED, discard
from storage.lock import is_alive

CHECKPOINT = re.compile(r"checkpoint-(0|[1-9]\d*)")
STAGING = ".saving-"
TEMPORARY = re.compile(r"\..+\.(?P<pid>\d+)\.tmp")  # of `atomic.write_text`
STAGED = re.compile(re.escape(STAGING) + r"(?P<name>.+)\.(?P<host>[^.]+)\.(?P<pid>\d+)")


def checkpoints(folder: Path) -> list[Path]:
    """The `checkpoint-N` folders in a folder, oldest first by N: a copied or touched one is no newer for it."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if CHECKPOINT.fullmatch(path.name) and path.is_dir()), key=step_of)


def step_of(checkpoint: Path | str) -> int:
    """N of `checkpoint-N`."""
    return int(str(checkpoint).rpartition("-")[2])


def staging(folder: Path, name: str) -> Path:
    """Where this process makes `name` ready before it is published beside it: `.saving-checkpoint-40.HOST.PID`."""
    return folder / f"{STAGING}{name}.{host()}.{os.getpid()}"


def host() -> str:
    """This machine's name, without dots."""
    return socket.gethostname().partition(".")[0] or "localhost"


def recover(folder: Path) -> list[str]:
    """Gives checkpoints their names back that were being replaced when a process was killed, on a file system where two
    names cannot change places in one call; returns the names."""
    found = sorted(folder.glob(f"{REPLACED}checkpoint-*")) if folder.is_dir() else []
    names = [path.name.removeprefix(REPLACED) for path in found]
    lost = [name for name in names if not (folder / name).exists()]
    for name in lost:
        os.rename(folder / f"{REPLACED}{name}", folder / name)
    return lost


def set_aside(path: Path, why: str) -> str:
    """Renames a checkpoint, so that nobody takes it for one; its new name."""
    aside, number = path.with_name(f"{why}-{path.name}"), 2
    while aside.exists():
        aside = path.with_name(f"{why}-{number}-{path.name}")
        number += 1
    path.rename(aside)
    return aside.name


def sweep(folder: Path) -> list[str]:
    """Deletes what dead processes left half-written or half-deleted; returns the names.

    Called by the one process that holds the folder's lock: what other machines began there is dead too. What another
    process of this machine still writes is left alone.
    """
    gone = []
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            staged, temporary = STAGED.fullmatch(path.name), TEMPORARY.fullmatch(path.name)
            is_leaving = path.name.startswith((LEAVING, REPLACED))
            if is_leaving or (staged and not _is_alive(staged["host"], staged["pid"])):
                discard(path)
                gone.append(path.name)
            elif temporary and (path.is_symlink() or not path.is_dir()) and not _is_alive(host(), temporary["pid"]):
                path.unlink(missing_ok=True)
                gone.append(path.name)
    return gone


def _is_alive(where: str, number: str) -> bool:
    """Whether a process that left something still runs here; this very one left it in an earlier save."""
    return where == host() and int(number) != os.getpid() and is_alive(int(number))
