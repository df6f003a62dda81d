"""Make samples and batches of records.

Shapes: B rows of a batch, T tokens of a row.
"""

from pathlib import Path

import numpy as np
import torch

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
