"""Make samples and batches of text.

Shapes: B samples, T tokens of a sample (block_size), C streams read side by side.

A batch is a dict of `input_ids` (B, T) int64, `shift_labels` (B, T) int64, the token that follows each of them, and
`labels`, the input ids again for models that shift them themselves. With several streams each is (B, C, T).
`dataset_index`, an int, is the number of the batch's data set, if each has an embedding of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from data.text.sampling import Drawn, Interleaved
from data.text.token_file import AlignedTokens, Tokens
from data.window_starts import RandomStarts, StoredStarts, spread_stride


def batch_of(rows: np.ndarray) -> dict[str, torch.Tensor]:
    """Windows of T + 1 tokens (…, T + 1) -> the batch; every tensor is contiguous, as losses that flatten need."""
    inputs = torch.from_numpy(rows[..., :-1].astype(np.int64, order="C"))
    return {
        "input_ids": inputs,
        "shift_labels": torch.from_numpy(rows[..., 1:].astype(np.int64, order="C")),
        "labels": inputs,
    }


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
