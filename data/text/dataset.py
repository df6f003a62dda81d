"""Map token files into memory, and make samples and batches of their windows.

Shapes: B samples, T tokens of a sample (block_size), L tokens of a window, C streams read side by side.

A batch is a dict of `input_ids` (B, T) int64, `shift_labels` (B, T) int64, the token that follows each of them, and
`labels`, the input ids again for models that shift them themselves. With several streams each is (B, C, T).
`dataset_index`, an int, is the number of the batch's data set, if each has an embedding of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.samplers import RandomStarts, StoredStarts, spread_stride
from data.text.folder import Folder, Split
from data.text.sampling import Drawn, Interleaved
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


def batch_of(rows: np.ndarray) -> dict[str, torch.Tensor]:
    """Windows of T + 1 tokens (…, T + 1) -> the batch; every tensor is contiguous, as losses that flatten need."""
    inputs = torch.from_numpy(rows[..., :-1].astype(np.int64, order="C"))
    return {
        "input_ids": inputs,
        "shift_labels": torch.from_numpy(rows[..., 1:].astype(np.int64, order="C")),
        "labels": inputs,
    }


# ---- samples ----


class Windows(torch.utils.data.Dataset):
    """Samples by their numbers, a batch at a time."""

    def __getitems__(self, numbers: list[int]) -> dict[str, Any]:
        raise NotImplementedError

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Return one sample: the batch of one, without its batch axis."""
        batch = self.__getitems__([number])
        return {key: value[0] if isinstance(value, torch.Tensor) else value for key, value in batch.items()}


class TrainWindows(Windows):
    """Windows of one data set, of streams read side by side, or of several data sets, each step on one of them.

    Args:
        samples: Of an epoch. Numbers continue over the epochs: any is valid.
        starts: Numbers -> first tokens.

    Attributes:
        choose: Number of an optimizer step -> number of its data set, if there are several.
        step_size: Samples of an optimizer step, over its micro-batches and all processes.
        says_which: Whether batches carry `dataset_index`.
    """

    choose: Drawn | Interleaved | None = None
    step_size, says_which = 1, False

    def __init__(
        self,
        names: list[str],
        tokens: list[Tokens] | list[AlignedTokens],
        block_size: int,
        samples: int,
        starts: RandomStarts | StoredStarts,
    ):
        self.names, self.tokens, self.block_size, self.samples, self.starts = names, tokens, block_size, samples, starts

    def __len__(self) -> int:
        return self.samples

    def __getitems__(self, numbers: list[int]) -> dict[str, Any]:
        chosen, starts = self._windows(numbers)
        batch = batch_of(self.tokens[chosen].rows(starts, self.block_size + 1))
        return {**batch, "dataset_index": chosen} if self.says_which else batch

    def _windows(self, numbers: list[int]) -> tuple[int, np.ndarray]:
        """(data set, first tokens) of samples of one step."""
        chosen, samples = 0, np.array(numbers, np.uint64)
        if self.choose is not None:
            step = numbers[0] // self.step_size
            chosen = self.choose(step)
            if isinstance(self.starts, StoredStarts):
                # In stored order a data set's own samples are counted, or it would be read with gaps.
                samples -= np.uint64((step - self.choose.earlier(step)) * self.step_size)
        return chosen, self.starts(samples, len(self.tokens[chosen]), self.block_size)

    def where(self, number: int) -> str:
        """Return `shakespeare_char token 12345`: where sample `number` begins."""
        chosen, starts = self._windows([number])
        return f"{self.names[chosen]} token {starts[0]}"


class EvalWindows(Windows):
    """The windows of a validation text, side by side without overlap, so ordered that any first few are a fair sample.

    Args:
        index: The number of the data set, if batches carry `dataset_index`.
    """

    def __init__(self, tokens: Tokens | AlignedTokens, block_size: int, index: int | None = None):
        self.tokens, self.block_size, self.index = tokens, block_size, index
        self.count = (len(tokens) - 1) // block_size
        self.stride = spread_stride(self.count)

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, numbers: list[int]) -> dict[str, Any]:
        samples = np.array(numbers, np.int64)
        if samples.min() < 0 or samples.max() >= self.count:
            raise IndexError(f"sample {samples.min()}…{samples.max()} of {self.count}")
        starts = samples * self.stride % self.count * self.block_size
        batch = batch_of(self.tokens.rows(starts, self.block_size + 1))
        return batch if self.index is None else {**batch, "dataset_index": self.index}
