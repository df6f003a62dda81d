"""Signals written as text: groups of samples as characters, joined by byte-pair encoding; each token has a channel.

A window is cut into groups of `group` samples (the last may be shorter). Of each group the channels follow one another,
each encoded by itself, so that no token spans two channels; between them, and between groups, stands a separator if
there is one. Separators and padding have the channel -1.

Shapes: C channels, T time steps, L tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from data.signals.dataset import NO_LABEL, Batch, NextSet, collate
from data.signals.text_files import FOLDER

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD, SEPARATOR = "<|pad|>", "<|sep|>"  # padding has id 0
FIRST_CHARACTER = 0x10000  # id 0; from here on all code points are characters
NO_CHANNEL = -1
TRAINED_VALUES = 2**23  # most that byte-pair encoding is learnt from


class SignalText:
    """Ids (C, T) <-> tokens with their channels.

    Args:
        tokenizer: Of strings in which a character is an id.
    """

    def __init__(self, tokenizer: Tokenizer, levels: int, group: int, use_separator: bool):
        self.tokenizer, self.levels, self.group, self.use_separator = tokenizer, levels, group, use_separator
        self.separator = tokenizer.token_to_id(SEPARATOR)

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.get_vocab_size()

    def longest(self, channels: int, samples: int) -> int:
        """Most tokens that a window can have."""
        return samples * channels + (-(-samples // self.group) * channels - 1) * self.use_separator

    def encode(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids (C, T) -> tokens, their channels, and how many samples each stands for, (L,) int64 each.

        Raises:
            ValueError: an id is outside the levels, which the tokenizer has no character for.
        """
        if ids.min() < 0 or ids.max() >= self.levels:
            raise ValueError(f"id {ids.min() if ids.min() < 0 else ids.max()} is outside the {self.levels} levels")
        starts = range(0, ids.shape[1], self.group)
        places = [(channel, start) for start in starts for channel in range(len(ids))]
        texts = [text_of(ids[channel, start : start + self.group]) for channel, start in places]
        tokens, channels, samples = [], [], []
        for (channel, _), encoding in zip(places, self.tokenizer.encode_batch_fast(texts), strict=True):
            if tokens and self.use_separator:
                tokens.append(self.separator)
                channels.append(NO_CHANNEL)
                samples.append(0)
            tokens += encoding.ids
            channels += [channel] * len(encoding.ids)
            samples += [len(self.tokenizer.id_to_token(token)) for token in encoding.ids]
        return np.array(tokens), np.array(channels), np.array(samples)


def text_of(ids: np.ndarray) -> str:
    return (ids + FIRST_CHARACTER).astype("<u4").tobytes().decode("utf-32-le")


class TextSet(NextSet):
    """Windows as text; `tokenizer` makes their ids, `text` the tokens of them."""

    def __init__(self, *args: object, text: SignalText, max_length: int | None = None, **keywords: object):
        super().__init__(*args, **keywords)
        self.text, self.max_length = text, max_length

    def __getitems__(self, numbers: Sequence[int]) -> Batch:
        values = self.values(numbers)[..., :-1]
        ids, unscored = self.tokenizer.encode(self.signals.filled(values)), np.isnan(values)
        if self.is_scored:
            unscored |= np.arange(values.shape[-1]) < self.windows.overlaps(numbers)[:, None, None]
        return collate([self.sample(*pair) for pair in zip(ids, unscored, strict=True)])

    def sample(self, ids: np.ndarray, unscored: np.ndarray) -> Batch:
        """Ids (C, T) and which of them are no targets -> the tokens and their labels, (L,) each."""
        tokens, channels, samples = self.text.encode(ids)
        targets = np.where(touched(channels, samples, unscored), NO_LABEL, tokens)[1:]
        cut = slice(self.max_length)
        labels = np.append(targets, NO_LABEL)
        return {
            "input_ids": torch.from_numpy(tokens[cut]),
            "labels": torch.from_numpy(labels[cut]),
            "channels": torch.from_numpy(channels[cut]),
            "attention_mask": torch.ones(len(tokens[cut]), dtype=torch.int64),
        }


def touched(channels: np.ndarray, samples: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """(L,) bool: whether one of a token's samples is among the missing ones (C, T)."""
    is_touched = np.zeros(len(channels), bool)
    if missing.any():
        for channel, row in enumerate(missing):
            places = np.flatnonzero(channels == channel)
            ends = np.cumsum(samples[places])
            before = np.concatenate([[0], np.cumsum(row)])
            is_touched[places] = before[ends] > before[ends - samples[places]]
    return is_touched


def train(groups: NextSet, levels: int, size: int) -> Tokenizer:
    """Learn byte-pair encoding from windows of one group of samples each.

    Raises:
        ValueError: `size` is less than the levels, the separator and padding.
    """
    from tokenizers import Tokenizer, models, trainers

    if size < levels + 2:
        raise ValueError(f"dataset.tokenizer_size: {size} is less than {levels} levels and 2 marks; raise it")
    alphabet = [chr(FIRST_CHARACTER + level) for level in range(levels)]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[PAD, SEPARATOR], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.train_from_iterator(texts_of(groups), trainer)
    return tokenizer


def texts_of(groups: NextSet) -> Iterator[str]:
    """The groups of all channels, of windows spread over the training split."""
    most = max(1, TRAINED_VALUES // (groups.windows.length * len(groups.signals.columns[0])))
    for number in range(min(len(groups), most)):
        for ids in groups.tokenizer.encode(groups.signals.filled(groups.values([number])[0, :, :-1])):
            yield text_of(ids)


def load(folder: str, levels: int, group: int, use_separator: bool) -> SignalText:
    """The tokenizer in `folder/tokenizer/`."""
    from tokenizers import Tokenizer

    return SignalText(Tokenizer.from_file(str(Path(folder) / FOLDER / "tokenizer.json")), levels, group, use_separator)
