"""Where a text comes from, read in pieces of bounded size: a file, a folder of files, JSON lines, a table of rows.

Every source has
    documents       whether it is made of documents; otherwise it is one text
    size            its bytes, for the progress bar; about right for rows
    identity()      JSON that changes when the content does
    survey(...)     one pass over the text, where the split or a check needs one -> JSON that `pieces` takes
    pieces(...)     the text in order, from any position that an earlier piece ended at

A piece holds whole characters, all of one document and one split. A document that is larger than a piece is cut before
a space between two words wherever there is one, because tokenizers cut there as well: the pieces' tokens are those of
the whole.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.strict_json import parsed
from data.text import pieces
from data.text.pieces import (
    Piece,
    Position,
    Share,
    Symbols,
    blocks_of,
    decoded,
    opened,
    refuse_empty_split,
    split_of,
)

ROWS_AT_ONCE = 1000
BINARY_PROBE = 2**13
TABLES = (".parquet",)
LINES = (".jsonl", ".json", ".ndjson")

HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?(:\w[\w.-]*)?")
FILE_ENDING = re.compile(r"\.[A-Za-z]\w{0,6}$")


def open_source(
    text: str, column: str | None = None, split: str | None = None, only: str = "", without: tuple[str, ...] = ()
) -> TextFile | Folder | JsonLines | Rows:
    """The source that `text` names: an existing path, or a dataset of the hub.

    Args:
        column: of JSON lines and tables; None: text.
        split: of a dataset of the hub; None: train.
        only: the ending that files of a folder need; all endings where empty.
        without: names of subfolders left out.

    Raises:
        ValueError: no such path, and not like an id; or `column` or `split` for a source that has none.
    """
    path = Path(text).expanduser()
    if not path.exists():
        return _open_missing(text, path, column, split)
    if split is not None:
        raise ValueError(f"--split {split} is for datasets of the hub; {text} is a path")
    ending = path.suffix.lower()
    if path.is_file() and ending in TABLES:
        return Rows.of_file(path, column or "text")
    if path.is_file() and ending in LINES:
        return JsonLines([path], column or "text")
    if path.is_dir():
        source = Folder(path, only, without)
        names = source.names()
        if names and all(Path(name).suffix.lower() == ".jsonl" for name in names):
            return JsonLines([path / name for name in names], column or "text")
    elif path.is_file():
        source = TextFile(path)
    else:
        raise ValueError(f"{text} is neither a file nor a folder")
    if column is not None:
        raise ValueError(
            f"--text_column {column} is for JSON lines, tables and datasets of the hub; {text} has no columns"
        )
    return source


def _open_missing(text: str, path: Path, column: str | None, split: str | None) -> Rows:
    """A dataset of the hub, unless the name is rather that of a file that is missing."""
    is_path = FILE_ENDING.search(text) or ("/" in text and path.parent.exists())
    if is_path or not HUB_ID.fullmatch(text):
        raise ValueError(f"{text} does not exist")
    return Rows.of_hub(text, column or "text", split or "train")


class TextFile:
    """One file, one text: its first characters train, its last validate, as many as the share says."""

    documents = False

    def __init__(self, path: Path):
        self.path = path
        self.size = path.stat().st_size

    def identity(self) -> Any:
        return _identity(self.path)

    def survey(self, share: Share, symbols: Symbols | None) -> dict:
        """`cut`: the byte at which validation begins. Every byte is checked to be UTF-8.

        Raises:
            ValueError: not UTF-8, no text, or a share that leaves a split empty.
        """
        blocks, count = [], 0  # (byte, characters before it)
        for offset, text in decoded(self.path):
            blocks.append((offset, count))
            count += len(text)
            if symbols is not None:
                symbols.add(text)
        if not count:
            raise ValueError(f"{self.path} is empty")
        if isinstance(share, str):
            return {"cut": self.size if share == "train" else 0}
        kept = int(count * (1 - float(share)))
        if not 0 < kept < count:
            empty = "val" if kept else "train"
            raise ValueError(
                f"the {empty} split is empty: {self.path} has {count:,} characters and --val_fraction is "
                f"{float(share):g}; change it, or give --val_text"
            )
        offset, before = max(block for block in blocks if block[1] <= kept)
        with opened(self.path) as stream:
            stream.seek(offset)
            text, _ = codecs.utf_8_decode(stream.read(pieces.READ_BYTES + 4), "strict", False)
        return {"cut": offset + len(text[: kept - before].encode())}

    def pieces(self, survey: dict, share: Share, begin: Position | None = None) -> Iterator[Piece]:
        """Position: the byte in the file."""
        (offset,) = begin or [0]
        with opened(self.path) as stream:
            for split, end in (("train", survey["cut"]), ("val", self.size)):
                for block, after in blocks_of(stream, offset, end):
                    yield Piece(block, split, False, f"{self.path} after byte {offset}", len(block), [after])
                    offset = after


class Folder:
    """The text files below a folder, a document each, in the order of their paths.

    Left out and counted: hidden files and folders, links, empty files and what is not UTF-8 text.
    """

    documents = True

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

    def names(self) -> list[str]:
        return [name for name, _, _ in self.files]

    def identity(self) -> Any:
        digest = hashlib.sha256(json.dumps(self.files).encode()).hexdigest()
        return {"files": len(self.files), "bytes": self.size, "digest": digest}

    def survey(self, share: Share, symbols: Symbols | None) -> dict:
        """`files`: those that are text. `note`: what was left out, for people.

        Raises:
            ValueError: no text at all, or a share that leaves a split empty.
        """
        kept, left_out = [], {**self.left_out, "binary": 0, "empty": 0}
        for name, size, _ in self.files:
            if not size:
                left_out["empty"] += 1
            elif _is_text(self.path / name, symbols):
                kept.append(name)
            else:
                left_out["binary"] += 1
        note = ", ".join(f"{count} {what}" for what, count in left_out.items() if count)
        note = f"left out: {note}" if note else ""
        if not kept:
            raise ValueError(f"{self.path} holds no text file{note and f' ({note})'}")
        refuse_empty_split(len(kept), share, str(self.path))
        return {"files": kept, "note": f"{self.path}: {len(kept)} text files{note and f'; {note}'}"}

    def pieces(self, survey: dict, share: Share, begin: Position | None = None) -> Iterator[Piece]:
        """Position: the number of the file, the byte in it."""
        first, offset = begin or [0, 0]
        for number in range(first, len(survey["files"])):
            path = self.path / survey["files"][number]
            with opened(path) as stream:
                end = os.fstat(stream.fileno()).st_size
                for block, after in blocks_of(stream, offset, end):
                    ends = after == end
                    position = [number + 1, 0] if ends else [number, after]
                    yield Piece(block, split_of(number, share), ends, str(path), len(block), position)
            offset = 0


class JsonLines:
    """Files with a JSON object a line, a document each: the text in one of its keys."""

    documents = True

    def __init__(self, files: list[Path], column: str):
        self.files, self.column = files, column
        self.size = sum(file.stat().st_size for file in files)

    def identity(self) -> Any:
        return [_identity(file) for file in self.files]

    def survey(self, share: Share, symbols: Symbols | None) -> dict:
        """Nothing to know before; the lines are read once more where their symbols are asked for."""
        _add_all(symbols, self, share)
        return {}

    def pieces(self, survey: dict, share: Share, begin: Position | None = None) -> Iterator[Piece]:
        """Position: documents before, number of the file, byte of the line, number of the line, byte in its text."""
        document, first, start, number, offset = begin or [0, 0, 0, 0, 0]
        for index in range(first, len(self.files)):
            with opened(self.files[index]) as stream:
                stream.seek(start)
                for line in stream:
                    number, after = number + 1, start + len(line)
                    place = f"{self.files[index]}:{number}"
                    text = _text_of(line, self.column, place)
                    for block, done in blocks_of(io.BytesIO(text), offset, len(text)):
                        ends = done == len(text)
                        here = [document, index, start, number - 1, done]
                        position = [document + 1, index, after, number, 0] if ends else here
                        advance = len(line) if ends else 0
                        yield Piece(block, split_of(document, share), ends, place, advance, position)
                    document, start, offset = document + (len(text) > 0), after, 0
            start, number = 0, 0


class Rows:
    """A column of a table of the package `datasets`, a document a row."""

    documents = True

    def __init__(self, name: str, table: Any, column: str, identity: Any):
        if column not in table.column_names:
            raise ValueError(f"{name} has no column `{column}`; it has {', '.join(table.column_names)}: --text_column")
        self.name, self.table, self.column = name, table.select_columns([column]), column
        self.size = self.table.data.nbytes
        self._identity = identity

    @classmethod
    def of_hub(cls, name: str, column: str, split: str) -> Rows:
        """`org/name`, or `org/name:configuration`; downloaded by `datasets` into its own cache."""
        dataset, _, configuration = name.partition(":")
        known = f"{name} is no path, and as a dataset of the hub"
        table = _loaded(known, dataset, configuration or None, split=split)
        return cls(name, table, column, {"dataset": name, "split": split, "rows": len(table)})

    @classmethod
    def of_file(cls, path: Path, column: str) -> Rows:
        table = _loaded(str(path), "parquet", data_files=str(path), split="train")
        return cls(str(path), table, column, _identity(path))

    def identity(self) -> Any:
        return self._identity

    def survey(self, share: Share, symbols: Symbols | None) -> dict:
        _add_all(symbols, self, share)
        return {}

    def pieces(self, survey: dict, share: Share, begin: Position | None = None) -> Iterator[Piece]:
        """Position: documents before, the row, the byte in its text."""
        document, first, offset = begin or [0, 0, 0]
        for start in range(first, len(self.table), ROWS_AT_ONCE):
            for row, value in enumerate(self.table[start : start + ROWS_AT_ONCE][self.column], start):
                place = f"{self.name} row {row}"
                text = _as_bytes(value, self.column, place)
                for block, done in blocks_of(io.BytesIO(text), offset, len(text)):
                    ends = done == len(text)
                    position = [document + 1, row + 1, 0] if ends else [document, row, done]
                    yield Piece(block, split_of(document, share), ends, place, len(block), position)
                document, offset = document + (len(text) > 0), 0


def _is_text(path: Path, symbols: Symbols | None) -> bool:
    with opened(path) as stream:
        if b"\0" in stream.read(BINARY_PROBE):
            return False
    found = None if symbols is None else Symbols()  # a binary file's first blocks must leave none behind
    try:
        for _, text in decoded(path):
            if found is not None:
                found.add(text)
    except ValueError:
        return False
    if found is not None:
        symbols.seen |= found.seen
    return True


def _text_of(line: bytes, column: str, place: str) -> bytes:
    """The text of one line; empty for a blank one."""
    if not line.strip():
        return b""
    try:
        record = parsed(line)
    except ValueError as error:  # also bytes that are not UTF-8
        raise ValueError(f"{place} is not a line of JSON: {error}") from None
    if not isinstance(record, dict):
        raise ValueError(f"{place} holds no JSON object but {type(record).__name__}; write one object a line")
    if column not in record:
        raise ValueError(f"{place} has no `{column}`; it has {', '.join(record) or 'nothing'}: --text_column")
    return _as_bytes(record[column], column, place)


def _as_bytes(value: Any, column: str, place: str) -> bytes:
    """A cell as UTF-8; nothing where it is null."""
    if value is None:
        return b""
    if not isinstance(value, str):
        raise ValueError(f"{place}: `{column}` is {type(value).__name__}, not text; name another --text_column")
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{place}: `{column}` holds half a character (U+{ord(value[error.start]):04X})") from None


def _add_all(symbols: Symbols | None, source: JsonLines | Rows, share: Share) -> None:
    if symbols is not None:
        for piece in source.pieces({}, share):
            symbols.add(piece.text.decode())


def _loaded(name: str, *arguments: Any, **options: Any) -> Any:
    """A table of the package `datasets`, imported here: nothing else needs it."""
    try:
        from datasets import load_dataset
    except ImportError:
        raise ValueError(f"{name} needs the package `datasets`: pip install datasets") from None
    try:
        return load_dataset(*arguments, **options)
    except Exception as error:  # no such dataset, no network, no such split: the package has an error for each
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(f"{name} cannot be loaded: {reason}") from error


def _identity(path: Path) -> dict:
    status = path.stat()
    return {"name": path.name, "size": status.st_size, "modified_ns": status.st_mtime_ns}
