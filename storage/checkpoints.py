"""Names of checkpoint folders and of their staging folders, and the removal of what killed processes left behind."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

from storage.atomic import DELETING, REPLACED, discard
from storage.lock import is_alive

CHECKPOINT = re.compile(r"checkpoint-(0|[1-9]\d*)")
STAGING = ".saving-"
TEMPORARY = re.compile(r"\..+\.(?P<pid>\d+)\.tmp")  # of `atomic.write_text`
STAGED = re.compile(re.escape(STAGING) + r"(?P<name>.+)\.(?P<host>[^.]+)\.(?P<pid>\d+)")


def checkpoints(folder: Path) -> list[Path]:
    """Return the `checkpoint-N` folders in a folder, sorted by N and not by time: a copied one is no newer."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if CHECKPOINT.fullmatch(path.name) and path.is_dir()), key=step_of)


def step_of(checkpoint: Path | str) -> int:
    """Return N of `checkpoint-N`."""
    return int(str(checkpoint).rpartition("-")[2])


def staging_folder(folder: Path, name: str) -> Path:
    """Return where this process prepares `name` before it is published: `.saving-checkpoint-40.HOST.PID`."""
    return folder / f"{STAGING}{name}.{host()}.{os.getpid()}"


def host() -> str:
    """Return this machine's name without dots."""
    return socket.gethostname().partition(".")[0] or "localhost"


def recover(folder: Path) -> list[str]:
    """Finish replacements of checkpoints that a kill interrupted (see `atomic.publish`); return the restored names."""
    replaced = sorted(folder.glob(f"{REPLACED}checkpoint-*")) if folder.is_dir() else []
    restored = []
    for path in replaced:
        name = path.name.removeprefix(REPLACED)
        if not (folder / name).exists():
            os.rename(path, folder / name)
            restored.append(name)
    return restored


def set_aside(path: Path, reason: str) -> str:
    """Rename a checkpoint to `REASON-checkpoint-N`, so that no resume takes it; return the new name."""
    aside, number = path.with_name(f"{reason}-{path.name}"), 2
    while aside.exists():
        aside = path.with_name(f"{reason}-{number}-{path.name}")
        number += 1
    path.rename(aside)
    return aside.name


def sweep(folder: Path) -> list[str]:
    """Delete what killed processes left half-written or half-deleted in a folder; return the deleted names.

    Only the holder of the folder's lock may call it: a staging folder of another machine then belongs to a dead run.
    Files that a live process of this machine is still writing stay.
    """
    deleted = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        staged, temporary = STAGED.fullmatch(path.name), TEMPORARY.fullmatch(path.name)
        if path.name.startswith((DELETING, REPLACED)):
            is_left = True
        elif staged:
            is_left = not _is_another_live_process(staged["host"], int(staged["pid"]))
        else:
            is_file = path.is_symlink() or not path.is_dir()
            is_left = bool(temporary) and is_file and not _is_another_live_process(host(), int(temporary["pid"]))
        if is_left:
            discard(path)
            deleted.append(path.name)
    return deleted


def _is_another_live_process(host_name: str, pid: int) -> bool:
    """Whether another process of this machine runs; this process's own leftovers are of an earlier save."""
    return host_name == host() and pid != os.getpid() and is_alive(pid)
