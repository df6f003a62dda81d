"""Read JSON that users wrote: an error is one line with the reason and the place."""

from __future__ import annotations

import contextlib
import gzip
import json
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO


def parsed(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: Not JSON or not UTF-8, nested deeper than Python follows, or a number longer than Python reads; the
            message is the reason alone, without the place.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(reason(error)) from None


def reason(error: ValueError | RecursionError) -> str:
    """Return what json's error means to the author of the text."""
    if isinstance(error, RecursionError):
        return "lists or objects are nested too deeply"
    if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)):
        return " ".join(str(error).split())
    # Left by json to int(), whose advice is for programmers.
    return f"a number has more than {sys.get_int_max_str_digits():,} digits"


@contextlib.contextmanager
def open_maybe_compressed(file: Path) -> Iterator[BinaryIO]:
    """Open a file to read, decompressed if its name ends with .gz. Errors while reading name it."""
    with file.open("rb") as stream:
        try:
            yield gzip.GzipFile(fileobj=stream) if file.suffix == ".gz" else stream
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{file}: not whole gzip data ({error}); copy or download the file again") from None
        except OSError as error:
            error.filename = error.filename or str(file)
            raise


def json_lines(file: Path, lines: Iterable[bytes]) -> Iterator[tuple[str, Any]]:
    """Yield (FILE:LINE, value) of each line that is not blank; a byte order mark is dropped.

    Raises:
        ValueError: A line is not JSON or not UTF-8.
    """
    for number, line in enumerate(lines, 1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            try:
                yield f"{file}:{number}", parsed(line)
            except ValueError as error:
                raise ValueError(f"{file}:{number}: not JSON ({error}); each line is one JSON object") from None
