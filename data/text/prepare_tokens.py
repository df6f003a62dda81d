"""Pieces of text become tokens, a chunk of pieces at a time, and tokens become files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from data.text.config import SPLITS
from data.text.pieces import Piece
from data.text.tokenizers import block_encoder

CHUNK_BYTES = 2**20  # text of one task


class Output:
    """The two files of tokens, cut to what the journal tells of and then appended to."""

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

    def append(self, tokens: dict[str, tuple[np.ndarray, int]], written: dict) -> dict:
        """Takes split -> (ids in the file's type, bytes of their text); returns `written` with them counted."""
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


def chunks_of(pieces: Iterable[tuple[int, Piece]]) -> Iterator[list[tuple[int, Piece]]]:
    """Pieces in tasks of about CHUNK_BYTES of text."""
    chunk, size = [], 0
    for numbered in pieces:
        chunk.append(numbered)
        size += len(numbered[1].text)
        if size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def chunk_encoder(folder: Path, separator: int | None, documents: bool, dtype: np.dtype) -> Callable:
    """One worker's function: a chunk -> {split: (ids, bytes of text)}.

    A document ends with the `separator` token, or where the tokenizer has none with a newline of its text.
    """
    encode = block_encoder(folder)
    newline = b"\n" if documents and separator is None else b""

    def encode_chunk(chunk: list[tuple[int, Piece]]) -> dict[str, tuple[np.ndarray, int]]:
        pieces = [piece for _, piece in chunk]
        blocks = [piece.text + (newline if piece.ends else b"") for piece in pieces]
        found = {split: ([], 0) for split in SPLITS}
        for piece, block, ids in zip(pieces, blocks, _encoded(encode, pieces, blocks), strict=True):
            arrays, size = found[piece.split]
            arrays.append(ids.astype(dtype))
            if piece.ends and separator is not None:
                arrays.append(np.asarray([separator], dtype))
            found[piece.split] = (arrays, size + len(block))
        return {split: (np.concatenate(arrays), size) for split, (arrays, size) in found.items() if arrays}

    return encode_chunk


def _encoded(encode: Callable, pieces: list[Piece], blocks: list[bytes]) -> list[np.ndarray]:
    try:
        return encode(blocks)
    except ValueError:
        for piece, block in zip(pieces, blocks, strict=True):  # once more, one by one, to name the place
            try:
                encode([block])
            except ValueError as error:
                raise ValueError(f"{piece.place}: {error}") from None
        raise
