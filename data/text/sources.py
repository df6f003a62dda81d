"""Where a text comes from: a file, a folder of files, JSON lines, or a table of rows.

A source is read in pieces of bounded size, always in the same order. A document that is larger than a piece is cut
before a space between two words wherever there is one.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from data.hub import load_dataset
from data.strict_json import json_lines, open_maybe_compressed
from data.text.pieces import (
    Piece,
    Share,
    TextFacts,
    at_least_one,
    pieces_of,
    read_text,
    refuse_empty_split,
    split_of,
    with_newlines,
)

ROWS_AT_ONCE = 1000
BINARY_PROBE = 2**13
TABLES = (".parquet",)
LINES = (".jsonl", ".json", ".ndjson", ".jsonl.gz", ".json.gz", ".ndjson.gz")

HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?(:\w[\w.-]*)?")
FILE_ENDING = re.compile(r"\.[A-Za-z]\w{0,6}$")


def open_source(
    text: str,
    column: str | None = None,
    split: str | None = None,
    only: str = "",
    without: tuple[str, ...] = (),
) -> Source:
    """Return the source that `text` names: an existing path, or a dataset of the hub.

    Args:
        column: Of JSON lines and tables; None: text.
        split: Of a dataset of the hub; None: train.
        only: The ending that files of a folder need; all endings if empty.
        without: Names of subfolders that are left out.

    Raises:
        ValueError: No such path, and not like an id; or `column` or `split` for a source that has none.
    """
    path = Path(os.path.expanduser(text))
    if not path.exists():
        return _open_missing(text, path, column, split)
    if split is not None:
        raise ValueError(f"--split {split} is for datasets of the hub; {text} is a path")
    name = path.name.lower()
    if path.is_file() and name.endswith(TABLES):
        table = load_dataset(str(path), "parquet", data_files=str(path), split="train")
        return Rows(str(path), table, column or "text", _identity(path))
    if path.is_file() and name.endswith(LINES):
        return JsonLines([path], column or "text")
    if path.is_dir():
        source = Folder(path, only, without)
        names = [name for name, _, _ in source.files]
        if names and all(name.lower().endswith((".jsonl", ".jsonl.gz")) for name in names):
            return JsonLines([path / name for name in names], column or "text")
    elif path.is_file():
        source = TextFile(path)
    else:
        raise ValueError(f"{text} is neither a file nor a folder")
    if column is not None:
        raise ValueError(f"--text_column {column} is for JSON lines, tables and hub datasets; {text} has no columns")
    return source


def _open_missing(text: str, path: Path, column: str | None, split: str | None) -> Rows:
    """A dataset of the hub, unless the name is rather that of a file that is missing."""
    is_path = FILE_ENDING.search(text) or ("/" in text and path.parent.exists())
    if is_path or not HUB_ID.fullmatch(text):
        raise ValueError(f"{text} does not exist")
    dataset, _, configuration = text.partition(":")
    split = split or "train"
    table = load_dataset(f"{text} is no path, and as a dataset of the hub", dataset, configuration or None, split=split)
    return Rows(text, table, column or "text", {"dataset": text, "split": split, "rows": len(table)})


class Source:
    """Documents, each of one split.

    Attributes:
        documents: Whether the text consists of documents; otherwise it is one text.
        size: Bytes of the text, roughly, for the progress bar.
        newlines: `keep`, or `lf` to turn all line ends into line feeds.
    """

    documents = True
    newlines = "keep"
    size: int

    def identity(self) -> Any:
        """JSON that changes when the content does."""
        raise NotImplementedError

    def texts(self, survey: dict) -> Iterator[tuple[str, Iterable[str]]]:
        """(place, blocks of text) of each document."""
        raise NotImplementedError

    def survey(self, share: Share, facts: TextFacts) -> dict:
        """One pass over the text, if the split or the symbols need one; returns JSON that `pieces` takes.

        Raises:
            ValueError: The text cannot be read, or the share leaves a split empty.
        """
        documents = 0
        for _, blocks in self.texts({}):
            before = facts.characters
            for block in with_newlines(blocks, self.newlines):
                facts.add(block)
            documents += facts.characters > before
            is_enough = isinstance(share, str) or int(documents * share) > 0
            if is_enough and not len(facts.seen):  # the other documents change nothing
                break
        return {"documents": documents}

    def pieces(self, survey: dict, share: Share) -> Iterator[Piece]:
        number, share = 0, at_least_one(share, survey["documents"])
        for place, blocks in self.texts(survey):
            is_empty = True
            for piece in pieces_of(with_newlines(blocks, self.newlines), split_of(number, share), place):
                yield piece
                is_empty = False
            number += not is_empty


class TextFile(Source):
    """One file, one text: its first characters train, its last validate, as many as the share says."""

    documents = False

    def __init__(self, path: Path):
        self.path, self.size = path, path.stat().st_size

    def identity(self) -> Any:
        return _identity(self.path)

    def survey(self, share: Share, facts: TextFacts) -> dict:
        before = facts.characters
        for block in with_newlines(read_text(self.path), self.newlines):
            facts.add(block)
        count = facts.characters - before
        if not count:
            raise ValueError(f"{self.path} is empty")
        kept = (count if share == "train" else 0) if isinstance(share, str) else int(count * (1 - float(share)))
        refuse_empty_split(kept, count, share, str(self.path), "characters")
        return {"kept": kept, "note": _carriage_returns(self.path, facts)}

    def pieces(self, survey: dict, share: Share) -> Iterator[Piece]:
        blocks, rest, done = with_newlines(read_text(self.path), self.newlines), [], 0
        splits = {"train": _until(blocks, survey["kept"], rest), "val": itertools.chain(rest, blocks)}
        for split, part in splits.items():
            for piece in pieces_of(part, split, "", is_document=False):
                yield Piece(piece.text, split, False, f"{self.path} after character {done}")
                done += len(piece.text)


def _until(blocks: Iterator[str], count: int, rest: list[str]) -> Iterator[str]:
    """The first `count` characters; `rest` takes what is left of the block they end in."""
    for block in blocks:
        if len(block) >= count:
            rest.append(block[count:])
            yield block[:count]
            return
        count -= len(block)
        yield block


class Folder(Source):
    """The text files below a folder, each a document, in the order of their paths.

    Left out and counted: hidden files and folders, links, empty files and what is not UTF-8 text.
    """

    def __init__(self, path: Path, only: str = "", without: tuple[str, ...] = ()):
        self.path, self.only, self.without = path, only, frozenset(without)
        self.files, self.left_out = self._listed()
        self.size = sum(size for _, size, _ in self.files)

    def _listed(self) -> tuple[list[tuple[str, int, int]], dict[str, int]]:
        """(path below the folder, bytes, modification time in ns) of every file, sorted by path."""
        files, left_out = [], {"hidden": 0, "links": 0, "special": 0}

        def refuse(error: OSError) -> None:
            raise ValueError(f"cannot read {error.filename}: {error.strerror}")

        for folder, subfolders, names in os.walk(self.path, onerror=refuse):
            shown = [name for name in subfolders if not name.startswith(".")]
            left_out["hidden"] += len(subfolders) - len(shown) + sum(name.startswith(".") for name in names)
            left_out["links"] += sum(os.path.islink(os.path.join(folder, name)) for name in shown)
            subfolders[:] = [name for name in shown if name not in self.without]
            for name in names:
                if name.startswith(".") or not name.endswith(self.only):
                    continue
                status = os.lstat(os.path.join(folder, name))
                if stat.S_ISREG(status.st_mode):
                    below = os.path.relpath(os.path.join(folder, name), self.path)
                    files.append((below, status.st_size, status.st_mtime_ns))
                else:
                    left_out["links" if stat.S_ISLNK(status.st_mode) else "special"] += 1
        return sorted(files, key=lambda file: Path(file[0]).parts), left_out

    def identity(self) -> Any:
        digest = hashlib.sha256(json.dumps(self.files).encode()).hexdigest()
        return {"files": len(self.files), "bytes": self.size, "digest": digest}

    def survey(self, share: Share, facts: TextFacts) -> dict:
        kept, left_out = [], {**self.left_out, "binary": 0, "empty": 0}
        for name, _, _ in self.files:
            of_file = self._facts(self.path / name, bool(len(facts.seen)))
            if of_file is None or not of_file.characters:
                left_out["binary" if of_file is None else "empty"] += 1
            else:
                facts.merge(of_file)
                kept.append(name)
        note = ", ".join(f"{count} {what}" for what, count in left_out.items() if count)
        note = f"left out: {note}" if note else ""
        if not kept:
            raise ValueError(f"{self.path} holds no text file{note and f' ({note})'}")
        share = at_least_one(share, len(kept))
        trained = sum(split_of(number, share) == "train" for number in range(len(kept)))
        refuse_empty_split(trained, len(kept), share, str(self.path), "documents")
        note = f"{self.path}: {len(kept)} text files{note and f'; {note}'}"
        note = "\n".join(filter(None, (note, _carriage_returns(self.path, facts))))
        return {"files": kept, "documents": len(kept), "note": note}

    def _facts(self, path: Path, with_symbols: bool) -> TextFacts | None:
        """None for a file that is not text, whatever its first blocks are."""
        facts = TextFacts(with_symbols)
        try:
            with open_maybe_compressed(path) as stream:
                if b"\0" in stream.read(BINARY_PROBE):
                    return None
            for block in with_newlines(read_text(path), self.newlines):
                facts.add(block)
        except ValueError:
            return None
        return facts

    def texts(self, survey: dict) -> Iterator[tuple[str, Iterable[str]]]:
        for name in survey["files"]:
            yield str(self.path / name), read_text(self.path / name)


class JsonLines(Source):
    """Files with one JSON object per line, each a document: the text of one of its keys."""

    def __init__(self, files: list[Path], column: str):
        self.files, self.column = files, column
        self.size = sum(file.stat().st_size for file in files)

    def identity(self) -> Any:
        return [_identity(file) for file in self.files]

    def texts(self, survey: dict) -> Iterator[tuple[str, Iterable[str]]]:
        for file in self.files:
            with open_maybe_compressed(file) as stream:
                for place, record in json_lines(file, stream):
                    if not isinstance(record, dict) or self.column not in record:
                        keys = ", ".join(record) if isinstance(record, dict) else f"no keys ({type(record).__name__})"
                        raise ValueError(f"{place} has no `{self.column}`; it has {keys or 'nothing'}: --text_column")
                    yield place, [_cell(record[self.column], self.column, place)]


class Rows(Source):
    """A column of a table of the package `datasets`, one document per row."""

    def __init__(self, name: str, table: Any, column: str, identity: Any):
        if column not in table.column_names:
            raise ValueError(f"{name} has no column `{column}`; it has {', '.join(table.column_names)}: --text_column")
        self.name, self.table, self.column = name, table.select_columns([column]), column
        self.size = self.table.data.nbytes
        self._identity = identity

    def identity(self) -> Any:
        return self._identity

    def texts(self, survey: dict) -> Iterator[tuple[str, Iterable[str]]]:
        for start in range(0, len(self.table), ROWS_AT_ONCE):
            for row, value in enumerate(self.table[start : start + ROWS_AT_ONCE][self.column], start):
                place = f"{self.name} row {row}"
                yield place, [_cell(value, self.column, place)]


def _cell(value: Any, column: str, place: str) -> str:
    """The text of a cell; nothing if it is null."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{place}: `{column}` is {type(value).__name__}, not text; name another --text_column")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{place}: `{column}` holds half a character (U+{ord(value[error.start]):04X})") from None
    return value


def _carriage_returns(path: Path, facts: TextFacts) -> str:
    if not facts.carriage_returns:
        return ""
    return f"{path}: {facts.carriage_returns:,} carriage returns stay in the text; --newlines lf drops them"


def _identity(path: Path) -> dict:
    status = path.stat()
    return {"name": path.name, "size": status.st_size, "modified_ns": status.st_mtime_ns}
