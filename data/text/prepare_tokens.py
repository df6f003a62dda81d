"""Turn pieces of text into tokens, in parallel and in order, and append the tokens to files."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.text.config import SPLITS
from data.text.pieces import Piece
from data.text.tokenizers import block_encoder

CHUNK_CHARACTERS = 2**20  # text of one task
TASKS_AHEAD = 3  # tasks per worker that wait, run or are done: enough that none waits for a slow neighbour
PR_SET_PDEATHSIG = 1  # of linux/prctl.h

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

    def start(self) -> Callable[[list[Piece]], Tokens]:
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


def encode_in_order(
    encoder: ChunkEncoder, chunks: Iterable[list[Piece]], num_workers: int
) -> Iterator[tuple[list[Piece], Tokens]]:
    """Yield (chunk, tokens) in the order of the chunks, which are read only as they can be worked on.

    With one worker everything happens in this process.

    Raises:
        ValueError: The tokenizer cannot encode a piece.
        RuntimeError: A worker died.
    """
    if num_workers == 1:
        encode = encoder.start()
        for chunk in chunks:
            yield chunk, encode(chunk)
        return
    # Not forked: the parent may have threads.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, context, initializer=_start_worker, initargs=(encoder,))
    try:
        waiting: deque = deque()
        for chunk in chunks:
            waiting.append((chunk, pool.submit(_work, chunk)))
            if len(waiting) >= TASKS_AHEAD * num_workers:
                done, future = waiting.popleft()
                yield done, future.result()
        for done, future in waiting:
            yield done, future.result()
    except BrokenProcessPool as error:
        raise RuntimeError("a worker process died; was memory short?") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(encoder: ChunkEncoder) -> None:
    global _encode
    # Ctrl-C reaches every process of the terminal; the parent alone handles it, and ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(AttributeError):  # Linux alone has it: end also if the parent is killed
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # with a worker per core, threads only wait for one another
    _encode = encoder.start()


def _work(chunk: list[Piece]) -> Tokens:
    return _encode(chunk)
