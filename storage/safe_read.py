"""Small files that somebody else may have put there: read whole, or refused with one reason; nothing waits for ever."""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

LARGEST = 2**30  # bytes: the log of a million steps, which trainer_state.json holds, has fewer
# Opening a pipe waits until somebody writes into it, unless it is opened so.
AT_ONCE = getattr(os, "O_NONBLOCK", 0)
KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFDIR: "a folder", stat.S_IFSOCK: "a socket"}


class NoFile(OSError):
    """A pipe, a folder, a device or a socket lies where a file should, or a file too large to be what it should be."""


def read(path: Path, most: int = LARGEST) -> bytes:
    """A file's content.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be read, is no file (`NoFile`), or larger than `most` bytes (`NoFile`).
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | AT_ONCE)
    except OSError as error:
        if error.errno == errno.ENXIO:  # so a socket answers, which cannot be opened
            raise _none(path, "is a socket, not a file") from None
        raise
    try:
        found = os.fstat(descriptor)
        if why := strangeness(found.st_mode):
            raise _none(path, why)
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(most + 1) if found.st_size <= most else b""
    finally:
        os.close(descriptor)
    if found.st_size > most or len(content) > most:
        raise _none(path, f"is larger than {most:,} bytes")
    return content


def read_json(path: Path, most: int = LARGEST) -> Any:
    """The JSON value in a file.

    Raises:
        FileNotFoundError, OSError: as `read`.
        ValueError: it is none; the text is the reason, in a few words.
    """
    try:
        return json.loads(read(path, most).decode("utf-8"))
    except RecursionError:
        raise ValueError("its lists are nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text: {error.reason} at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    except ValueError:  # left by json to int(), whose advice is for programmers
        raise ValueError(f"a number has more than {sys.get_int_max_str_digits():,} digits") from None


def strangeness(mode: int) -> str | None:
    """`is a pipe, not a file`, by what `os.stat` says of it; None: it is a file."""
    kind = stat.S_IFMT(mode)
    return None if kind == stat.S_IFREG else f"is {KINDS.get(kind, 'a device')}, not a file"


def neither_file_nor_folder(folder: Path) -> str | None:
    """`config.json, which is a pipe, not a file`: the first of what lies in a folder that nobody should open; a link
    that leads nowhere is none."""
    for entry in sorted(os.scandir(folder), key=lambda each: each.name):
        try:
            mode = entry.stat().st_mode
        except OSError:
            continue
        if not stat.S_ISDIR(mode) and (why := strangeness(mode)):
            return f"{entry.name}, which {why}"
    return None


def _none(path: Path, why: str) -> NoFile:
    return NoFile(errno.EINVAL, why, str(path))
