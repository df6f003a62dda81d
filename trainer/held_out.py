"""The mean loss of a model over a held-out set, without a Trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


@torch.no_grad()
def mean_losses(
    model: Any, dataset: Any, collate: Callable[[Any], dict[str, Any]], batch_size: int, device: str
) -> dict[str, float]:
    """`{"loss": …}` and, where the model has named terms, `{"loss_<name>": …}`: means over the whole set.

    Every sample counts alike, and of text every token that carries loss.

    Args:
        model: In evaluation mode, on `device`.
        dataset: Map-style; `__getitems__` is used where it has one.
        collate: What the data set returns -> batch.
    """
    sums: dict[str, torch.Tensor] = {}
    total = 0
    for first in range(0, len(dataset), batch_size):
        indices = list(range(first, min(first + batch_size, len(dataset))))
        whole = getattr(dataset, "__getitems__", None)
        batch = collate(whole(indices) if whole is not None else [dataset[index] for index in indices])
        labels = batch.get("shift_labels")
        weight = len(indices) if labels is None else int((labels != -100).sum())
        if not weight:
            continue
        outputs = model(**{name: each.to(device) if hasattr(each, "to") else each for name, each in batch.items()})
        terms = outputs.get("losses") or {}
        for name, value in {
            "loss": outputs["loss"],
            **{f"loss_{name}": value for name, value in terms.items()},
        }.items():
            sums[name] = sums.get(name, 0) + value.double() * weight
        total += weight
    return {name: value.item() / total for name, value in sums.items()}
