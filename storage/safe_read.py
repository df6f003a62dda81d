"""Read small files with a limit on their size; a damaged JSON file is one ValueError with a short reason."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

MAX_BYTES = 2**30  # trainer_state.json with the log of a million steps is smaller

SHOWN_CHARACTERS = 200  # of text that a file or its name contains


class FileTooLarge(OSError):
    """A file is too large to be what its name says."""


def read(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """Return a file's content.

    Raises:
        FileNotFoundError: there is no such file.
        FileTooLarge: it has more than `max_bytes` bytes.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size > max_bytes:
            raise FileTooLarge(errno.EFBIG, f"is larger than {max_bytes:,} bytes", str(path))
        return file.read()


def read_json(path: Path, max_bytes: int = MAX_BYTES) -> Any:
    """Return the JSON value in a file.

    Raises:
        OSError: as in `read`.
        ValueError: the file holds no JSON; the text is the reason, in a few words.
    """
    try:
        return json.loads(read(path, max_bytes))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None


def escaped(text: str, kept: str = "") -> str:
    """Return text with control characters escaped, except those in `kept`."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in kept else char.encode("unicode_escape").decode() for char in text
    )


def printable(text: str) -> str:
    """Return text from a file without control characters and shortened, so that a message can show it."""
    line = escaped(text)
    return line if len(line) <= SHOWN_CHARACTERS else f"{line[:SHOWN_CHARACTERS]} …"
