"""Write files and folders atomically: after a crash of the process or the machine they are complete or absent."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of linux/fs.h
REPLACED = ".replaced-"  # prefix of a folder whose name is being given to a newer one
DELETING = ".deleting-"  # prefix of a folder that is being deleted
MASK = os.umask(0o077)  # can only be read by setting it: done on import, before any thread creates files
os.umask(MASK)
# Some file systems cannot fsync a folder and answer with one of these.
FSYNC_UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EISDIR)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file to write, which gets the name `path` by one rename at the end, or is deleted after an error.

    Raises:
        OSError: the disk refuses it, or there is a folder of that name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() and not path.is_symlink():
        raise IsADirectoryError(errno.EISDIR, "is a folder, but a file must be written there; move it away", str(path))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a file as `replacing` does: readers see the old text or the new one."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file as `write_text` does; a ValueError for NaN and infinity."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def sync(path: Path) -> None:
    """Wait until a file's content is on disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Wait until a folder's entries are on disk, where the file system supports that."""
    try:
        sync(path)
    except OSError as error:
        if error.errno not in FSYNC_UNSUPPORTED:
            raise


def sync_tree(folder: Path) -> None:
    """Wait until a folder and everything below it are on disk."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(parent, name))
        sync_folder(Path(parent))


def publish(staged: Path, final: Path) -> None:
    """Rename a staging folder to its final name once all of it is on disk; both are in one file system.

    An existing folder of that name is exchanged for the new one in a single system call where Linux has one. Elsewhere
    the name is missing for a moment (see `checkpoints.recover`), but it never names a mixture.
    """
    sync_tree(staged)
    outdated = final.with_name(f"{REPLACED}{final.name}")
    discard(outdated)  # of a process that was killed here
    if not os.path.lexists(final):
        os.rename(staged, final)
    elif _exchange(staged, final):
        os.rename(staged, outdated)
    else:
        os.rename(final, outdated)
        os.rename(staged, final)
    sync_folder(final.parent)
    discard(outdated)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names in one system call; False: the system or the file system (NFS) cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
        names = os.fsencode(first.absolute()), os.fsencode(second.absolute())
        return rename(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0
    except (OSError, AttributeError):
        return False


def apply_umask(folder: Path) -> None:
    """Give every file below a folder the permissions of a new file; safetensors lets only the owner read its files."""
    for parent, _, names in os.walk(folder):
        for name in names:
            os.chmod(Path(parent, name), 0o666 & ~MASK)


def discard(path: Path) -> None:
    """Delete a file, a symlink or a folder, or as much of it as possible; errors are ignored."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def remove(folder: Path) -> None:
    """Delete a folder, renamed first: readers see it complete or not at all, also if this process is killed."""
    hidden = hide(folder)
    if hidden is not None:
        discard(hidden)


def hide(folder: Path) -> Path | None:
    """Rename a folder that is to be deleted and return its hidden name; None: another process has deleted it."""
    hidden = folder.with_name(f"{DELETING}{folder.name}")
    discard(hidden)  # of a process that was killed here
    try:
        os.rename(folder, hidden)
    except FileNotFoundError:
        return None
    return hidden
