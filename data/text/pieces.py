"""Pieces of text: bounded parts of a source, each of one document and one split."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from data.strict_json import open_maybe_compressed
from data.text.tokenizers import CODE_POINTS, code_points

PIECE_CHARACTERS = 2**18
CUT_WINDOW = 2**14  # how far before its end a piece looks for a good place to end, in characters
READ_BYTES = 2**23
BETWEEN_WORDS = re.compile(r"(?<=\S) (?=\w)")
LINE_END = re.compile(r"(?<=\S)(?=\n)")

# All of a source for one split, or the share of it that validates.
Share = str | Fraction


@dataclass(frozen=True)
class Piece:
    """Text of a document or of a part of it.

    Attributes:
        split: train or val.
        ends: Whether a document ends here.
        place: Where the text is from, for error lines.
    """

    text: str
    split: str
    ends: bool
    place: str


class TextFacts:
    """Number of characters and carriage returns of a text, and which characters occur, if that is asked for."""

    def __init__(self, with_symbols: bool) -> None:
        self.characters = self.carriage_returns = 0
        self.seen = np.zeros(CODE_POINTS if with_symbols else 0, bool)

    def add(self, text: str) -> None:
        self.characters += len(text)
        self.carriage_returns += text.count("\r")
        if len(self.seen):
            self.seen[code_points(text)] = True

    def merge(self, other: TextFacts) -> None:
        self.characters += other.characters
        self.carriage_returns += other.carriage_returns
        self.seen |= other.seen

    def symbols(self) -> list[str]:
        return [chr(code) for code in np.flatnonzero(self.seen)]


def split_of(document: int, share: Share) -> str:
    """Return the split of a document by its number: evenly spread, every tenth validates for 1/10."""
    if isinstance(share, str):
        return share
    return "val" if int((document + 1) * share) > int(document * share) else "train"


def at_least_one(share: Share, documents: int) -> Share:
    """The share, or if the documents are too few for it, the one by which the last of them validates."""
    is_too_small = not isinstance(share, str) and documents > 1 and int(documents * share) == 0 and share > 0
    return Fraction(1, documents) if is_too_small else share


def refuse_empty_split(kept: int, count: int, share: Share, name: str, unit: str) -> None:
    """Raise ValueError if the share keeps all or none of `count` units for training."""
    if not isinstance(share, str) and not 0 < kept < count:
        split, remedy = "val" if kept else "train", "change it, or give --val_text"
        given = f"{name} has {count:,} {unit} and --val_fraction is {float(share):g}"
        raise ValueError(f"the {split} split is empty: {given}; {remedy}")


def with_newlines(blocks: Iterable[str], newlines: str) -> Iterator[str]:
    """Yield a text with all line ends as line feeds (`lf`), or as it is (`keep`)."""
    held = ""
    for block in blocks:
        if newlines == "lf":
            block = held + block
            held = "\r" if block.endswith("\r") else ""  # the line feed may follow
            block = block.removesuffix("\r").replace("\r\n", "\n").replace("\r", "\n")
        yield block
    if held:
        yield "\n"


def read_text(path: Path) -> Iterator[str]:
    """Yield a file's text without byte order mark, some megabytes at a time.

    Raises:
        ValueError: A byte is not UTF-8; the message says which.
    """
    offset, rest = 0, b""
    with open_maybe_compressed(path) as stream:
        while block := stream.read(READ_BYTES):
            data = rest + block
            try:
                text, used = codecs.utf_8_decode(data, "strict", False)
            except UnicodeDecodeError as error:
                raise _not_utf8(path, offset + error.start, data[error.start]) from None
            yield text if offset else text.removeprefix("\ufeff")
            offset, rest = offset + used, data[used:]
    if rest:
        raise _not_utf8(path, offset, rest[0])


def _not_utf8(path: Path, offset: int, byte: int) -> ValueError:
    return ValueError(f"{path} is not UTF-8 text: byte 0x{byte:02x} at offset {offset}; convert it with iconv")


def pieces_of(blocks: Iterable[str], split: str, place: str, is_document: bool = True) -> Iterator[Piece]:
    """Cut a text, given in blocks, into pieces of PIECE_CHARACTERS at most; none if it is empty."""
    rest = ""
    for block in blocks:
        rest += block
        begin = 0
        while len(rest) - begin > PIECE_CHARACTERS:
            end = begin + cut_of(rest[begin : begin + PIECE_CHARACTERS])
            yield Piece(rest[begin:end], split, False, place)
            begin = end
        rest = rest[begin:]
    if rest:
        yield Piece(rest, split, is_document, place)


def cut_of(text: str) -> int:
    """Return the best place to cut a text that continues: before a space between words, near its end.

    Tokenizers cut there too, so that the pieces' tokens are those of the whole. Otherwise at the end of a line,
    otherwise at the end.
    """
    start = max(0, len(text) - CUT_WINDOW)
    for pattern in (BETWEEN_WORDS, LINE_END):
        places = [match.start() for match in pattern.finditer(text[start:])]
        if places:
            return start + places[-1]
    return len(text)
