"""Files and folders that are whole or absent, whatever kills the process or the machine."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

HERE, EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of linux/fs.h
REPLACED = ".replaced-"  # a folder whose name is just being given to a newer one
LEAVING = ".deleting-"  # a folder on its way out; never a name that is looked for
MASK = os.umask(0o077)  # can only be read by setting it: here, before there are threads that make files
os.umask(MASK)
# File systems that cannot bring a folder's entries to disk by themselves say so with one of these.
UNABLE = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EISDIR)


def write_text(path: Path, text: str) -> None:
    """Writes through a temporary file and one rename: a reader sees the old text or the new, nothing between.

    Raises:
        OSError: the disk will not take it, or a folder lies there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() and not path.is_symlink():
        raise IsADirectoryError(errno.EISDIR, "is a folder, where a file is to be written; move it away", str(path))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """As `write_text`; a value that JSON has no word for (NaN) is a ValueError."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def sync(path: Path) -> None:
    """Waits until a file's content is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Waits until a folder's entries are on disk, where the file system can be told so."""
    try:
        sync(path)
    except OSError as error:
        if error.errno not in UNABLE:
            raise


def sync_tree(folder: Path) -> None:
    """Every file and every folder below, and the folder itself."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(parent, name))
        sync_folder(Path(parent))


def publish(staged: Path, final: Path) -> None:
    """A folder made ready under another name gets its own, in one rename; both lie in the same file system.

    All of it is on disk before, the rename after it. One that has the name already is exchanged for it in one call,
    where the system has that; elsewhere there is none for a moment, but never a mixture.
    """
    sync_tree(staged)
    outdated = final.with_name(f"{REPLACED}{final.name}")
    discard(outdated)  # left by a killed process
    if not os.path.lexists(final):
        os.rename(staged, final)
    elif _exchanged(staged, final):
        os.rename(staged, outdated)
    else:
        os.rename(final, outdated)
        os.rename(staged, final)
    sync_folder(final.parent)
    discard(outdated)


def _exchanged(one: Path, other: Path) -> bool:
    """Whether two names have changed places in one call of Linux's; file systems over a network have none."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
        return rename(HERE, os.fsencode(one.absolute()), HERE, os.fsencode(other.absolute()), EXCHANGE) == 0
    except (OSError, AttributeError):
        return False


def give_usual_rights(folder: Path) -> None:
    """Gives each file below the rights that new files have here; some writers let only the owner read theirs."""
    for parent, _, names in os.walk(folder):
        for name in names:
            os.chmod(Path(parent, name), 0o666 & ~MASK)


def discard(path: Path) -> None:
    """Deletes a file, a link or a folder, or as much of it as can be."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def remove(folder: Path) -> None:
    """Deletes a folder: renamed first, so that whoever looks sees it whole or not at all, also if this process dies."""
    hidden = take_away(folder)
    if hidden is not None:
        discard(hidden)


def take_away(folder: Path) -> Path | None:
    """Gives a folder that is to go a name that nobody looks for, and returns that; None: somebody was faster."""
    hidden = folder.with_name(f"{LEAVING}{folder.name}")
    discard(hidden)  # left by a killed process
    try:
        os.rename(folder, hidden)
    except FileNotFoundError:
        return None
    return hidden
