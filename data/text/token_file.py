"""Map the tokens of a split into memory, and check that each is an id of the vocabulary.

Shapes: B samples, L tokens of a window, C streams read side by side.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import numpy as np

from data.text.folder import Folder, Split
from storage import atomic, safe_read

CHUNK_TOKENS = 2**22


def numpy_type(split: Split) -> np.dtype:
    return np.dtype(split.dtype).newbyteorder("<")


class Tokens:
    """One split's tokens. Pickling keeps the file's name only: a loader worker maps the file again."""

    def __init__(self, split: Split):
        self.split = split
        mapped = np.memmap(split.path, numpy_type(split), "r", split.offset, (split.tokens,))
        self.array = np.asarray(mapped)  # memmap's own indexing costs several microseconds a call
        self.windows: np.ndarray | None = None

    def __len__(self) -> int:
        return self.split.tokens

    def rows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Return the windows that begin at `starts` (B,), (B, L), of the file's type: a copy."""
        if self.windows is None or self.windows.shape[1] != length:
            self.windows = np.lib.stride_tricks.sliding_window_view(self.array, length)
        return self.windows[starts]

    def __getstate__(self) -> Split:
        return self.split

    def __setstate__(self, split: Split) -> None:
        self.__init__(split)


class AlignedTokens:
    """Streams of equal length, read at the same offsets."""

    def __init__(self, streams: list[Tokens]):
        assert len({len(stream) for stream in streams}) == 1, [len(stream) for stream in streams]
        self.streams = streams

    def __len__(self) -> int:
        return len(self.streams[0])

    def rows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Return the same windows of each stream, (B, C, L)."""
        return np.stack([stream.rows(starts, length) for stream in self.streams], axis=1)


def refuse_wrong_ids(folder: Folder, cache_dir: Path) -> None:
    """Check every token of a data set once; later runs find the result in the cache.

    Raises:
        ValueError: An id that the vocabulary does not have, with its place in the file.
    """
    for split in folder.splits.values():
        if folder.source != "meta.json":
            _refuse_wider_tokens(split)
        if largest_id(split, cache_dir) >= folder.vocab_size:
            raise ValueError(_wrong_id(folder, split))


def _wrong_id(folder: Folder, split: Split) -> str:
    position, value = next(
        (first + int(wrong[0]), int(chunk[wrong[0]]))
        for first, chunk in _chunks(split)
        if len(wrong := np.flatnonzero(chunk >= folder.vocab_size))
    )
    byte = split.offset + position * numpy_type(split).itemsize
    origin, remedy = {
        "GPT-2": (" (GPT-2's, as there is no meta.json)", "set dataset.vocab_size, or write a meta.json"),
        "dataset.vocab_size": (" (dataset.vocab_size)", "raise it, or write a meta.json"),
    }.get(folder.source, ("", "prepare the data set again"))
    return (
        f"{split.path}: token {position:,} (byte {byte:,}) is {value:,}, not an id of the vocabulary of "
        f"{folder.vocab_size:,}{origin}; {remedy}"
    )


def largest_id(split: Split, cache_dir: Path) -> int:
    """Return the largest token id of a file, read in chunks: memory does not grow with it.

    The result is kept in CACHE_DIR/text_checks as long as the file's size and time stamp stay.
    """
    path, status = str(split.path.resolve()), split.path.stat()
    facts = {"path": path, "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    facts |= {"dtype": split.dtype, "offset": split.offset}
    note = cache_dir / "text_checks" / f"{hashlib.sha256(path.encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):  # no note, or a damaged one
        earlier = safe_read.read_json(note)
        largest = earlier.pop("largest_id", None)
        if earlier == facts and isinstance(largest, int):
            return largest
    largest = max(int(chunk.max()) for _, chunk in _chunks(split))
    with contextlib.suppress(OSError):  # a folder that cannot be written to: checked again the next time
        atomic.write_json(note, facts | {"largest_id": largest})
    return largest


def _chunks(split: Split):
    """(position of the first token, tokens) of one part of the file after another."""
    with split.path.open("rb") as stream:
        stream.seek(split.offset)
        for first in range(0, split.tokens, CHUNK_TOKENS):
            yield first, np.fromfile(stream, numpy_type(split), min(CHUNK_TOKENS, split.tokens - first))


def _refuse_wider_tokens(split: Split) -> None:
    """uint32 ids below 65,536, read as uint16, are the ids with a 0 after each: all valid, and all wrong."""
    if split.dtype != "uint16" or split.tokens % 2:
        return
    _, chunk = next(_chunks(split))
    if len(chunk) >= 64 and chunk.any() and not chunk[1::2].any():
        raise ValueError(
            f"{split.path}: every second uint16 is 0, so its tokens are uint32; say so in a meta.json (dtype: uint32)"
        )
