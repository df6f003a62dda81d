"""Rows of numbers that a metric collects from batches and gathers over processes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class GatheredRows(Metric):
    """All rows that the processes have added, in float32; torchmetrics gathers them.

    The state is flat: a process without batches then takes part in gathering with an empty tensor.

    Args:
        columns: Numbers in a row.
    """

    full_state_update = False
    rows: list[Tensor]

    def __init__(self, columns: int):
        super().__init__()
        self.columns = columns
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def update(self, rows: Tensor) -> None:
        """Add rows (B, columns)."""
        assert rows.shape[1:] == (self.columns,), (tuple(rows.shape), self.columns)
        self.rows.append(rows.detach().float().flatten())

    def compute(self) -> np.ndarray:
        """(N, columns) of all processes."""
        return dim_zero_cat(self.rows).reshape(-1, self.columns).cpu().numpy()

    def add(self, rows: Tensor) -> None:
        """`update` on the device of the rows."""
        self.to(rows.device).update(rows)

    def gather(self) -> np.ndarray:
        """`compute` in all processes, also in those that have added nothing."""
        if not self.rows:
            needs_cuda = torch.distributed.is_initialized() and torch.distributed.get_backend() == "nccl"
            device = torch.device("cuda", torch.cuda.current_device()) if needs_cuda else torch.device("cpu")
            self.add(torch.empty(0, self.columns, device=device))
        return self.compute()
