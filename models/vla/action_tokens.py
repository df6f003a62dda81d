"""Chunks of actions as tokens: 256 bins for each number (OpenVLA, arXiv:2406.09246), or FAST (arXiv:2501.09747).

Actions are normalised by the data, never by the chunk: otherwise a chunk could not be restored.
Shapes: B chunks, C actions per chunk, A action dimensions, V different tokens.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from storage import safe_read

BINS = 256
SCALE = 10.0  # of FAST's coefficients before they are rounded
FIRST = 0x4E00  # character of the smallest coefficient; 20,992 in a row are letters
MOST_VALUES = 20_992
VERSION = 2  # of the file; from 2 on it names the normalization of actions


class ActionTokens(Protocol):
    """A chunk of normalised actions <-> tokens 0 … V - 1.

    Attributes:
        numbers: (V,) how many of a chunk's C·A numbers each token stands for. A whole chunk's tokens stand for all.
    """

    numbers: np.ndarray

    def encode(self, chunks: np.ndarray) -> list[np.ndarray]:
        """Tokens of each of the chunks (B, C, A)."""
        ...

    def decode(self, rows: Sequence[Iterable[int]]) -> tuple[np.ndarray, int]:
        """Chunks (B, C, A) float64, and how many of the rows do not stand for just a chunk's numbers.

        Numbers that such a row lacks are zeros, and those that are too many are left out.
        """
        ...


class BinTokens:
    """A token for each number: the bin of [-1, 1] in which it lies. Values beyond are in the outer bins."""

    def __init__(self, chunk_size: int, action_dim: int):
        self.shape = chunk_size, action_dim
        self.numbers = np.ones(BINS, np.int64)

    def encode(self, chunks: np.ndarray) -> list[np.ndarray]:
        bins = np.floor((np.asarray(chunks, np.float64) + 1) / 2 * BINS)
        return list(np.clip(bins, 0, BINS - 1).astype(np.int64).reshape(len(chunks), -1))

    def decode(self, rows: Sequence[Iterable[int]]) -> tuple[np.ndarray, int]:
        values = [(np.asarray(list(row), np.float64) + 0.5) / BINS * 2 - 1 for row in rows]
        return fitted(values, self.shape)


class FastTokens:
    """Tokens of byte-pair encoding over rounded coefficients of a cosine transform along the chunk.

    The coefficients stand in the order of their frequency, those of all dimensions together. One that is larger than
    any in training is clipped.

    Args:
        settings: What `train_fast` returned.

    Raises:
        ValueError: the settings are damaged, or for chunks of another shape.
    """

    def __init__(self, settings: dict[str, Any], chunk_size: int, action_dim: int):
        from tokenizers import Tokenizer

        try:
            trained = settings["chunk_size"], settings["action_dim"]
            self.scale, self.low, self.high = (settings[name] for name in ("scale", "low", "high"))
            self.bpe = Tokenizer.from_str(json.dumps(settings["bpe"]))
        except Exception as error:  # tokenizers raises plain Exception
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"the action tokenizer is damaged ({reason}); train it again with prepare.py") from None
        self.shape = chunk_size, action_dim
        if trained != self.shape:
            raise ValueError(
                f"the action tokenizer is for chunks of {trained[0]} x {trained[1]}, the data has {chunk_size} x "
                f"{action_dim}; train it with this data's chunk_size: prepare.py --action_tokenizer"
            )
        self.numbers = np.array([len(self.bpe.id_to_token(token)) for token in range(self.bpe.get_vocab_size())])

    def encode(self, chunks: np.ndarray) -> list[np.ndarray]:
        texts = letters(np.clip(rounded(chunks, self.scale), self.low, self.high), self.low)
        return [np.array(self.bpe.encode(text).ids) for text in texts]

    def decode(self, rows: Sequence[Iterable[int]]) -> tuple[np.ndarray, int]:
        texts = ["".join(self.bpe.id_to_token(int(token)) for token in row) for row in rows]
        values = [np.array([ord(letter) - FIRST + self.low for letter in text], np.float64) for text in texts]
        coefficients, malformed = fitted(values, self.shape)
        return np.einsum("kc,bka->bca", cosines(self.shape[0]), coefficients / self.scale), malformed


def fitted(rows: list[np.ndarray], shape: tuple[int, int]) -> tuple[np.ndarray, int]:
    """Rows of numbers as chunks (B, C, A), and how many of them were too short or too long."""
    size = shape[0] * shape[1]
    chunks = np.stack([np.pad(row[:size], (0, max(0, size - len(row)))) for row in rows])
    return chunks.reshape(len(rows), *shape), sum(len(row) != size for row in rows)


@functools.cache
def cosines(size: int) -> np.ndarray:
    """The orthonormal cosine transform (DCT-II) of `size` values as a matrix (frequency, time)."""
    time, frequency = np.arange(size), np.arange(size)[:, None]
    matrix = np.cos(np.pi * (time + 0.5) * frequency / size) * np.sqrt(2 / size)
    matrix[0] /= np.sqrt(2)
    return matrix


def rounded(chunks: np.ndarray, scale: float) -> np.ndarray:
    """Chunks (B, C, A) -> whole coefficients (B, C, A), by frequency."""
    chunks = np.asarray(chunks, np.float64)
    return np.rint(np.einsum("kc,bca->bka", cosines(chunks.shape[1]), chunks) * scale).astype(np.int64)


def letters(coefficients: np.ndarray, low: int) -> list[str]:
    """A text of each chunk's coefficients (B, C, A), a letter for each."""
    codes = (coefficients.reshape(len(coefficients), -1) - low + FIRST).tolist()
    return ["".join(map(chr, row)) for row in codes]


def train_fast(chunks: np.ndarray, size: int, scale: float = SCALE) -> dict[str, Any]:
    """Train FAST on chunks (B, C, A) of normalised actions; returns the settings of `FastTokens`, plain values.

    Args:
        size: Tokens: each different coefficient, and the most frequent sequences. There are fewer if nothing repeats.
        scale: More of it: finer actions, and more tokens.

    Raises:
        ValueError: the coefficients are more than the tokens.
    """
    from tokenizers import Tokenizer, models, trainers

    coefficients = rounded(chunks, scale)
    low, high = int(coefficients.min()), int(coefficients.max())
    values = high - low + 1
    if values > min(size, MOST_VALUES):
        raise ValueError(
            f"{size} tokens are fewer than the {values} different coefficients of these actions at scale {scale:g}; "
            "ask for more tokens or a lower scale, or normalise actions by percentiles or min_max"
        )
    alphabet = [chr(FIRST + value) for value in range(values)]
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, min_frequency=2, max_token_length=None, show_progress=False
    )
    bpe = Tokenizer(models.BPE())
    bpe.train_from_iterator(letters(coefficients, low), trainer)
    sizes = {"chunk_size": chunks.shape[1], "action_dim": chunks.shape[2]}
    return {"version": VERSION, "kind": "fast", **sizes, "scale": scale, "low": low, "high": high} | {
        "bpe": json.loads(bpe.to_str())
    }


def read_fast(file: Path) -> dict[str, Any]:
    """The settings of `FastTokens` in a file of prepare.py; ValueError if it is none."""
    try:
        settings = safe_read.read_json(file)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"model.action_tokenizer: {file} cannot be read ({reason}); make it by prepare.py") from None
    if not isinstance(settings, dict) or (settings.get("kind"), settings.get("version")) != ("fast", VERSION):
        raise ValueError(f"model.action_tokenizer: {file} was made by another version; make it again by prepare.py")
    return settings
