"""Make samples and batches of records.

Shapes: B rows of a batch, T tokens of a row.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from data.records.chat import Encoded

NO_LOSS = -100
ARRAYS = ("input_ids", "learned", "position_ids")


class Rows(torch.utils.data.Dataset):
    """The rows that `packing.fill` made and `save` wrote into `folder`.

    A batch holds, each (B, T) int64:
        input_ids: tokens.
        position_ids: Position of a token in its record. With it, transformers' models let no token attend to an earlier
            record, as long as they neither get an attention mask nor keep a cache.
        labels: The tokens; -100 for those that carry no loss.
        shift_labels: `labels` one to the left: the token to predict at each position. A record's first token carries no
            loss, so no record is predicted from the one before.
    """

    def __init__(self, folder: Path, split: str):
        self.folder, self.split = folder, split
        self.arrays = [np.load(file_of(folder, split, name), mmap_mode="r") for name in ARRAYS]

    def __reduce__(self):
        return Rows, (self.folder, self.split)  # a loader's worker gets the names, not the tokens

    def __len__(self) -> int:
        return len(self.arrays[0])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return one row, each tensor (T,)."""
        return {name: value[0] for name, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        ids, learned, positions = (torch.from_numpy(array[indices]) for array in self.arrays)
        ids = ids.long()
        labels = ids.masked_fill(~learned, NO_LOSS)
        shifted = torch.full_like(labels, NO_LOSS)
        shifted[:, :-1] = labels[:, 1:]
        return {"input_ids": ids, "position_ids": positions.long(), "labels": labels, "shift_labels": shifted}


def save(folder: Path, split: str, arrays: dict[str, np.ndarray]) -> None:
    for name in ARRAYS:
        np.save(file_of(folder, split, name), arrays[name])


def file_of(folder: Path, split: str, name: str) -> Path:
    return Path(folder) / f"{split}.{name}.npy"


# How many of the last rows a record may still go into: few positions stay empty, without a search over all rows.
OPEN_ROWS = 1024


def first_fit(lengths: Sequence[int], block_size: int) -> list[list[int]]:
    """Return the record numbers of each row: a record goes into the first of the last rows that has room for it."""
    rows: list[list[int]] = []
    room = np.zeros(len(lengths), np.int64)
    for number, length in enumerate(lengths):
        begin = max(0, len(rows) - OPEN_ROWS)
        fits = room[begin : len(rows)] >= length
        row = begin + int(fits.argmax()) if fits.any() else len(rows)
        if row == len(rows):
            rows.append([])
            room[row] = block_size
        rows[row].append(number)
        room[row] -= length
    return rows


def fill(records: Sequence[Encoded], rows: Sequence[Sequence[int]], block_size: int, pad: int) -> dict[str, np.ndarray]:
    """Return the rows as arrays, each (R, T): `input_ids` int32, `learned` bool, `position_ids` int32.

    Positions begin at 0 with each record, which tells a model where one ends. The rest of a row is pad tokens: after
    several records as if they were one more; after a single one as its continuation, which it does not attend to, so
    that a batch of such rows shows no boundary and needs no mask.
    """
    shape = (len(rows), block_size)
    arrays = {"input_ids": np.full(shape, pad, np.int32), "learned": np.zeros(shape, bool)}
    arrays["position_ids"] = np.zeros(shape, np.int32)
    for row, numbers in enumerate(rows):
        begin = 0
        for number in numbers:
            ids, learned = records[number][:2]
            end = begin + len(ids)
            arrays["input_ids"][row, begin:end] = ids
            arrays["learned"][row, begin:end] = learned
            arrays["position_ids"][row, begin:end] = np.arange(len(ids))
            begin = end
        first = begin if len(numbers) == 1 else 0
        arrays["position_ids"][row, begin:] = np.arange(first, first + block_size - begin)
    return arrays
