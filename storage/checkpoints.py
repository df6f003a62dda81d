"""The names of checkpoints, of those that are being written, and what killed processes leave of them."""

from __future__ import annotations

import os
import re
import shutil
import socket
from pathlib import Path

from .atomic import LEAVING

CHECKPOINT = re.compile(r"checkpoint-(\d+)")
STAGING = ".saving-"
TEMPORARY = re.compile(r"\..+\.\d+\.tmp")  # of `atomic.write_text`
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


def sweep(folder: Path) -> list[str]:
    """Deletes what dead processes left half-written or half-deleted; returns the names.

    Called by the one process that holds the folder's lock: what other machines began there is dead too. What another
    process of this machine still writes is left alone.
    """
    gone = []
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            staged = STAGED.fullmatch(path.name)
            if path.name.startswith(LEAVING) or (staged and not _is_alive(staged)):
                shutil.rmtree(path, ignore_errors=True)
                gone.append(path.name)
            elif TEMPORARY.fullmatch(path.name) and (path.is_symlink() or path.is_file()):
                path.unlink(missing_ok=True)
                gone.append(path.name)
    return gone


def _is_alive(staged: re.Match) -> bool:
    """Whether the process that made a staging folder still runs here. This very process left it in an earlier save."""
    pid = int(staged["pid"])
    if staged["host"] != host() or pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
