"""The folder of a prepared data set: complete or absent to its readers.

It is made in `.NAME.preparing` beside it, under a lock, and renamed once. When a preparation is interrupted, what it
made stays there, with a journal that says how far it came:

    journal.json   the settings, the sources' identities, and for each flushed stretch of text where it ended and how
                   many tokens lie in the files; what lies behind these is cut off before going on
    survey.json    what one pass over the sources found
    data/          the folder to be
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.strict_json import parsed
from storage.atomic import sync

META = "meta.json"
RECORD = "prepared.json"  # the settings and sources that a finished folder was made of


def staging_of(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.preparing"


@contextlib.contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """The folder to work in, with nobody else in it; a second preparer waits until the first one is done.

    It stays when the work is interrupted. What is wrong with the input leaves nothing, nor does an error before the
    first tokens.

    Raises:
        ValueError: the disk is full, or a file or folder cannot be read or made.
    """
    work = staging_of(folder)
    try:
        with _alone(work):
            try:
                yield work
            except Exception as error:
                if isinstance(error, ValueError) or not (read_json(work / "journal.json") or {}).get("read"):
                    shutil.rmtree(work, ignore_errors=True)
                raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ValueError(
                f"the disk of {work} is full; free some space and run the same command again to continue"
            ) from error
        raise ValueError(f"{error.filename or work}: {error.strerror or error}") from error


@contextlib.contextmanager
def _alone(work: Path) -> Iterator[None]:
    """Holds `work/lock`, which ends with the process, however it ends."""
    while True:
        work.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            try:
                lock = stack.enter_context((work / "lock").open("w"))
                _take(lock, work)
                held = os.fstat(lock.fileno()).st_ino == (work / "lock").stat().st_ino
            except FileNotFoundError:
                continue
            if held:  # else the one before finished meanwhile and removed the folder, lock and all
                yield
                return


def _take(lock: Any, work: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"waiting for another process that prepares in {work}", flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)


def finished(folder: Path) -> dict | None:
    """What a finished folder was made of; None where there is nothing yet.

    Raises:
        ValueError: the folder holds something else, which is nobody's to replace.
    """
    if not folder.is_dir():
        if folder.exists():
            raise ValueError(f"{folder} is a file; choose another --out")
        return None
    try:
        record = parsed((folder / RECORD).read_text(encoding="utf-8"))
        expected = {*record["files"], RECORD}
        whole = all((folder / name).stat().st_size == size for name, size in record["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        expected, record, whole = set(), None, True
    others = sorted(set(os.listdir(folder)) - expected)
    if record is None and not others:
        return None
    if others:
        raise ValueError(
            f"{folder} holds {others[0]}, which prepare.py did not write there; choose another name or --out"
        )
    return {**record, "whole": whole}


def publish(work: Path, folder: Path, record: dict) -> None:
    """Renames work/data to the folder, in place of an earlier one."""
    data = work / "data"
    record = {**record, "files": {path.name: path.stat().st_size for path in data.iterdir() if path.name != RECORD}}
    (data / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
    for entry in [*data.iterdir(), data]:
        sync(entry)
    if folder.exists():
        folder.rename(work / "replaced")
    data.rename(folder)
    sync(folder.parent)
    shutil.rmtree(work, ignore_errors=True)


def read_json(path: Path) -> Any:
    """A JSON file's content; None where it is missing or broken."""
    try:
        return parsed(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_json(path: Path, content: Any) -> None:
    """Whole or not at all, also when the machine stops meanwhile."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(content), encoding="utf-8")
    sync(part)
    part.replace(path)
