"""Pieces of text: bounded blocks of a source that hold whole characters of one document and one split."""

from __future__ import annotations

import codecs
import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import numpy as np

from data.text.tokenizers import CODE_POINTS, code_points

PIECE_BYTES = 2**18


CUT_WINDOW = 2**14  # how far before its end a piece looks for a good place to end


READ_BYTES = 2**23


BETWEEN_WORDS = re.compile(r"(?<=\S) (?=\w)")


LINE_END = re.compile(r"(?<=\S)(?=\n)")


# All of a source for one split, or the share of it that is held out for validation.
Share = str | Fraction


Position = list[int]


@dataclass(frozen=True)
class Piece:
    text: bytes
    """UTF-8, whole characters"""
    split: str
    """train or val"""
    ends: bool
    """whether a document ends here"""
    place: str
    """for error lines"""
    advance: int
    """bytes of the source it took"""
    position: Position
    """where the next piece begins"""


class Symbols:
    """The characters seen in a text."""

    def __init__(self) -> None:
        self.seen = np.zeros(CODE_POINTS, bool)

    def add(self, text: str) -> None:
        self.seen[code_points(text)] = True

    def sorted(self) -> list[str]:
        return [chr(code) for code in np.flatnonzero(self.seen)]


def split_of(document: int, share: Share) -> str:
    """The split of a document by its number: evenly spread, every tenth validates for 1/10."""
    if isinstance(share, str):
        return share
    return "val" if int((document + 1) * share) > int(document * share) else "train"


def refuse_empty_split(documents: int, share: Share, name: str) -> None:
    held = 0 if isinstance(share, str) else int(documents * share)
    if not isinstance(share, str) and not 0 < held < documents:
        raise ValueError(
            f"the {'train' if held else 'val'} split is empty: {name} has {documents} documents and --val_fraction is "
            f"{float(share):g}; change it, or give --val_text"
        )


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The file to read from; an error on the way, as of a disk that fails, names it, which Python's own does not."""
    with path.open("rb") as stream:
        try:
            yield stream
        except OSError as error:
            error.filename = error.filename or str(path)
            raise


def decoded(path: Path) -> Iterator[tuple[int, str]]:
    """(byte offset, text) of a file, in blocks of some megabytes.

    Raises:
        ValueError: a byte that is not UTF-8; says which.
    """
    offset, rest = 0, b""
    with opened(path) as stream:
        while block := stream.read(READ_BYTES):
            data = rest + block
            try:
                text, used = codecs.utf_8_decode(data, "strict", False)
            except UnicodeDecodeError as error:
                raise _not_utf8(path, offset + error.start, data[error.start]) from None
            yield offset, text
            offset, rest = offset + used, data[used:]
    if rest:
        raise _not_utf8(path, offset, rest[0])


def _not_utf8(path: Path, offset: int, byte: int) -> ValueError:
    return ValueError(f"{path} is not UTF-8 text: byte 0x{byte:02x} at offset {offset}; convert it with iconv")


def blocks_of(stream: BinaryIO, begin: int, end: int) -> Iterator[tuple[bytes, int]]:
    """(text, where it ends) of the bytes from `begin` to `end`, PIECE_BYTES at most at a time."""
    while begin < end:
        stream.seek(begin)
        wanted = min(PIECE_BYTES, end - begin)
        block = stream.read(wanted)
        if len(block) < wanted:
            raise ValueError(f"{getattr(stream, 'name', 'the text')} became shorter while it was read")
        if begin + wanted < end:
            block = block[: cut_of(block)]
        begin += len(block)
        yield block, begin


def cut_of(block: bytes) -> int:
    """The best place to cut a block that is followed by more text: before a space between words, near its end.

    Else at the end of a line, else between two characters.
    """
    end = len(block)
    for back in range(1, 5):
        if block[-back] & 0xC0 != 0x80:  # the first byte of the last character, whole or not
            width = 1 + (block[-back] >= 0xC0) + (block[-back] >= 0xE0) + (block[-back] >= 0xF0)
            end -= back if width > back else 0
            break
    start = max(0, end - CUT_WINDOW)
    while block[start] & 0xC0 == 0x80:
        start += 1
    window = block[start:end].decode()
    for pattern in (BETWEEN_WORDS, LINE_END):
        places = [match.start() for match in pattern.finditer(window)]
        if places:
            return start + len(window[: places[-1]].encode())
    return end
