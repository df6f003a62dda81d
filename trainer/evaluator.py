"""The one evaluator: losses and metrics over a whole data set, used during training and by eval.py."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from trainer.loss_terms import LossTerms, MeanLosses, outputs_with_loss


class NothingScored(ValueError):
    """An evaluation of a task with a loss or a metric in which no batch had a loss.

    Args:
        prefix: `eval`, or `eval_<set>` of one of several sets.
        entries: Names in the batches.
        targets: Names that the loss reads.
    """

    def __init__(self, prefix: str, entries: Iterable[str], targets: Iterable[str]):
        super().__init__(
            f"`{prefix}`: no batch of this evaluation has a loss; its batches have {', '.join(entries) or 'no names'}, "
            f"and the loss reads {', '.join(targets) or 'what the forward returns as `loss`'}; name the entries alike"
        )


class EvalScores:
    """The losses of one data set, and what its metric computes from batches and outputs.

    Args:
        terms: Terms of the model's loss.
        metric: `metrics.metric.Metric` of the data set, or None.
        counted: Batches that count; further ones only keep this process in step with the others. None: all.
        finite_only: Batches with a loss that is not finite are left out of the mean.
    """

    def __init__(self, terms: LossTerms, metric: Any = None, counted: int | None = None, finite_only: bool = False):
        self.losses, self.metric, self.counted = MeanLosses(terms, finite_only), metric, counted
        self.batches, self.entries = 0, ()  # batches so far, and the names in the newest
        if metric is not None:
            metric.reset()

    @property
    def is_repeated(self) -> bool:
        """Whether the newest batch does not count."""
        return self.counted is not None and self.batches > self.counted

    def add(self, batch: Mapping[str, Any], loss: torch.Tensor | None, outputs: Any) -> None:
        """Add a batch; one without a loss has no labels, and no metric either."""
        self.batches += 1
        self.entries = tuple(batch) if isinstance(batch, Mapping) else ()
        if loss is None:
            return
        self.losses.add(batch, loss, outputs, self.is_repeated)
        if self.metric is not None and not self.is_repeated:
            self.metric.update(batch, outputs)

    def compute(self, sum_over_processes: Callable[[torch.Tensor], torch.Tensor] | None = None) -> dict[str, float]:
        """`{"loss": …, "loss_<term>": …, "<metric>": …}`; all processes must call it."""
        losses = self.losses.compute(sum_over_processes)
        if self.metric is None or not losses:
            return losses
        return losses | self.metric.compute(losses.get("loss"))


@torch.no_grad()
def evaluate(
    model: nn.Module,
    dataset: Any,
    collate: Callable[[Any], dict[str, Any]],
    batch_size: int,
    device: torch.device | str,
    metric: Any = None,
    loss: Any = None,
) -> dict[str, float]:
    """Score a model on a map-style data set in one process, without a Trainer.

    Args:
        model: In evaluation mode, on `device`.
        collate: What the data set's `__getitems__` returned, or a list of samples -> batch.
        loss: A loss of `models.losses`; None: the model's own.
    """
    network = model.get_base_model() if hasattr(model, "get_base_model") else model  # PEFT's wrapper has no loss_items
    scores = EvalScores(LossTerms(network if loss is None else loss), metric)
    for batch in batches_of(dataset, collate, batch_size):
        batch = to_device(batch, device)
        outputs = outputs_with_loss(model, batch, loss)
        scores.add(batch, outputs["loss"], outputs)
    return scores.compute()


def batches_of(dataset: Any, collate: Callable[[Any], dict[str, Any]], batch_size: int) -> Iterator[dict[str, Any]]:
    """The batches of a map-style data set in its order; `__getitems__` is used if it has one."""
    whole = getattr(dataset, "__getitems__", None)
    for first in range(0, len(dataset), batch_size):
        indices = list(range(first, min(first + batch_size, len(dataset))))
        yield collate(whole(indices) if whole is not None else [dataset[index] for index in indices])


def to_device(batch: Any, device: torch.device | str) -> Any:
    """The same nesting of dicts and lists with its tensors on `device`."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {name: to_device(value, device) for name, value in batch.items()}
    if isinstance(batch, (list, tuple)) and not hasattr(batch, "_fields"):
        return type(batch)(to_device(value, device) for value in batch)
    return batch
