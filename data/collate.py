"""Make a batch of what a dataset returned."""

from __future__ import annotations

from typing import Any

import torch


def collate(samples: dict[str, Any] | list[dict[str, Any]]) -> dict[str, Any]:
    """Return a batch as a dataset's `__getitems__` made it, or make one of single samples.

    Tensors are stacked and texts become lists; a whole number, such as that of a data set, is one for the whole batch.

    Raises:
        ValueError: Such a number differs.
    """
    if isinstance(samples, dict):
        return samples
    return {key: _joined(key, [sample[key] for sample in samples]) for key in samples[0]}


def _joined(key: str, values: list[Any]) -> Any:
    if isinstance(values[0], torch.Tensor):
        return torch.stack(values)
    if isinstance(values[0], str):
        return values
    if len(set(values)) > 1:
        raise ValueError(f"samples of different `{key}` cannot share a batch")
    return values[0]
