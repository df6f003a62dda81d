"""Turn pieces of text into tokens, and append the tokens to files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.text.config import SPLITS
from data.text.pieces import Piece
from data.text.tokenizers import block_encoder

CHUNK_CHARACTERS = 2**20  # text of one task

Tokens = dict[str, tuple[np.ndarray, int]]  # split -> ids in the file's type, bytes of their text


class Output:
    """The two files of tokens, cut to what the journal says and then appended to."""

    def __init__(self, data: Path, written: dict):
        self.files = {split: (data / f"{split}.bin").open("r+b") for split in SPLITS}
        for split, file in self.files.items():
            file.truncate(written[split]["size"])
            file.seek(0, os.SEEK_END)

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self.files.values():
            with contextlib.suppress(OSError):  # a full disk has been reported already
                file.close()

    def append(self, tokens: Tokens, written: dict) -> dict:
        """Write tokens and return `written` with them counted."""
        written = dict(written)
        for split, (ids, text_bytes) in tokens.items():
            self.files[split].write(ids.tobytes())
            added = {"tokens": len(ids), "bytes": text_bytes, "size": ids.nbytes}
            written[split] = {key: count + added[key] for key, count in written[split].items()}
        return written

    def flush(self) -> None:
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())


@dataclass(frozen=True)
class ChunkEncoder:
    """A chunk of pieces -> their tokens.

    A document ends with the `separator` token, or with a newline of its text if the tokenizer has none.

    Args:
        folder: Of the tokenizer.
        separator: Number of the token that ends a document.
        documents: Whether the text consists of documents.
        dtype: Of the token file.
    """

    folder: Path
    separator: int | None
    documents: bool
    dtype: np.dtype

    def __call__(self) -> Callable[[list[Piece]], Tokens]:
        """Load the tokenizer and return the encoding function."""
        encode = block_encoder(self.folder)
        newline = "\n" if self.documents and self.separator is None else ""

        def encode_chunk(chunk: list[Piece]) -> Tokens:
            blocks = [(piece.text + (newline if piece.ends else "")).encode() for piece in chunk]
            parts = {split: ([], 0) for split in SPLITS}
            for piece, block, ids in zip(chunk, blocks, _encoded(encode, chunk, blocks), strict=True):
                arrays, size = parts[piece.split]
                arrays.append(ids.astype(self.dtype))
                if piece.ends and self.separator is not None:
                    arrays.append(np.asarray([self.separator], self.dtype))
                parts[piece.split] = (arrays, size + len(block))
            return {split: (np.concatenate(arrays), size) for split, (arrays, size) in parts.items() if arrays}

        return encode_chunk


def _encoded(encode: Callable, chunk: list[Piece], blocks: list[bytes]) -> list[np.ndarray]:
    try:
        return encode(blocks)
    except ValueError:
        for piece, block in zip(chunk, blocks, strict=True):  # once more, one by one, to name the place
            try:
                encode([block])
            except ValueError as error:
                raise ValueError(f"{piece.place}: {error}") from None
        raise


def chunks_of(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Yield pieces in chunks of about CHUNK_CHARACTERS of text."""
    chunk, size = [], 0
    for piece in pieces:
        chunk.append(piece)
        size += len(piece.text)
        if size >= CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
