"""Data: a CSV file whose last column is the class, 0, 1, …"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from storage.config_keys import key

PROCESS_KEYS = frozenset()


@dataclass
class Config:
    path: str = key("table.csv", "CSV file without a header; the last column is the class", is_path=True)
    eval_fraction: float = key(0.2, "share of the rows for evaluation", gt=0, lt=1)


def check(config, run):
    """Problems that show without reading the data, one line each."""
    return [] if Path(config.path).is_file() else [f"`dataset.path: {config.path}` does not exist; name a CSV file"]


def build(config, run):
    """The data of a run; a ValueError of one line if it cannot be used."""
    import numpy as np

    from data.bundle import Bundle
    from data.samplers import ShuffledSampler
    from my_lab.accuracy import Accuracy

    table = np.loadtxt(config.path, delimiter=",", dtype=np.float32, ndmin=2)
    held_out = max(1, round(config.eval_fraction * len(table)))
    if held_out >= len(table):
        raise ValueError(f"{config.path} has {len(table)} rows, too few to hold some out; lower dataset.eval_fraction")
    train, validation = Rows(table[:-held_out]), Rows(table[-held_out:])
    return Bundle(
        train,
        {"validation": validation},
        collate,
        partial(ShuffledSampler, len(train)),
        dims={"inputs": table.shape[1] - 1, "classes": int(table[:, -1].max()) + 1},
        summary=[f"{config.path}: {len(train)} rows for training, {len(validation)} for evaluation"],
        metrics={"validation": Accuracy()},
    )


class Rows:
    def __init__(self, table):
        self.table = table

    def __len__(self):
        return len(self.table)

    def __getitem__(self, index):
        return self.table[index]


def collate(rows):
    """A list of rows -> the batch, whose names are the arguments of the network's forward."""
    import torch

    table = torch.stack([torch.from_numpy(row) for row in rows])
    return {"rows": table[:, :-1], "label": table[:, -1].long()}
