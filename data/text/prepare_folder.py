"""The folder of a prepared data set: complete or absent to its readers.

It is made in `.NAME.preparing` beside it, under a lock, and renamed once. If a preparation is interrupted, the work
stays there, with a journal of how far it came:

    journal.json   the settings, the sources' identities, the number of pieces that are done, and the sizes of the files
                   after them; longer files are cut before the work continues
    data/          the folder to be
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.strict_json import parsed
from storage import atomic
from storage.lock import exclusive

META = "meta.json"
RECORD = "prepared.json"  # the settings and sources that a finished folder was made of


@contextlib.contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """Yield the folder to work in, with no other process in it; a second one waits until the first one is done.

    It stays if the work is interrupted. If the input is wrong, nothing stays, nor if nothing was tokenized yet.

    Raises:
        ValueError: The disk is full, or a file or folder cannot be read or made.
    """
    work, lock = folder.parent / f".{folder.name}.preparing", folder.parent / f".{folder.name}.lock"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(lock, message=f"waiting for another process that prepares {folder}"):
            try:
                work.mkdir(exist_ok=True)
                yield work
            except Exception as error:
                if isinstance(error, ValueError) or not (read_json(work / "journal.json") or {}).get("pieces"):
                    atomic.discard(work)
                raise
            finally:
                lock.unlink(missing_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ValueError(f"the disk of {work} is full; free some space and run the command again") from error
        raise ValueError(f"{error.filename or work}: {error.strerror or error}") from error


def finished(folder: Path) -> dict | None:
    """Return what a finished folder was made of; None if there is nothing yet.

    Raises:
        ValueError: The folder holds something else, which must not be replaced.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; choose another --out")
    record = read_json(folder / RECORD)
    files = record.get("files") if isinstance(record, dict) else None
    if not isinstance(files, dict):
        files = record = None
    names = set(os.listdir(folder)) if folder.exists() else set()
    if others := sorted(names - {*(files or ()), *([RECORD] if record else [])}):
        remedy = "choose another name or --out"
        raise ValueError(f"{folder} holds {others[0]}, which prepare.py did not write there; {remedy}")
    if record is None:
        return None
    is_whole = all(name in names and (folder / name).stat().st_size == size for name, size in files.items())
    return {**record, "whole": is_whole}


def publish(work: Path, folder: Path, record: dict) -> None:
    """Rename work/data to the folder, in place of an earlier one."""
    data = work / "data"
    record = {**record, "files": {path.name: path.stat().st_size for path in data.iterdir() if path.name != RECORD}}
    (data / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
    atomic.publish(data, folder)
    atomic.discard(work)


def read_json(path: Path) -> Any:
    """Return a JSON file's content; None if it is missing or broken."""
    try:
        return parsed(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
