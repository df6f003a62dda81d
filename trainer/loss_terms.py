"""Losses as means over items, independent of how a batch was cut.

A network's forward returns `loss` and, if the loss has several terms, `losses`: name -> mean over the batch. Two
members of the network say what these means are taken over:

    loss_items(batch) -> {term: number of items in this batch}     tokens that carry loss, valid actions, samples
    loss_weights: {term: weight of the term in the loss}           terms that are not listed weigh 1

`losses` may be left out if there is one term, which then is called `loss`. A network without `loss_items` has one term:
a mean over the labels that are not -100 if the batch has integer labels for tokens, otherwise a mean over samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import find_batch_size
from torch import nn

NO_LOSS = -100  # label of a token that carries no loss


def outputs_with_loss(model: nn.Module, batch: Mapping[str, Any], loss: Any = None) -> Mapping[str, Any]:
    """The model's outputs with their `loss`.

    Args:
        loss: A loss of `models.losses`, computed from predictions; None: the model's own.
    """
    if loss is None:
        return model(**batch)
    outputs = model(**{name: value for name, value in batch.items() if name not in loss.targets})
    return {**outputs, **loss(outputs, batch)}


class LossTerms:
    """The terms of a network's loss and the number of items that each is a mean over.

    Args:
        network: The network itself, without wrappers; or a loss of `models.losses`.
        uses_labels: The loss is computed from `labels` outside the network (label smoothing).
    """

    def __init__(self, network: nn.Module, uses_labels: bool = False):
        self.count = None if uses_labels else getattr(network, "loss_items", None)
        self.weights: Mapping[str, float] = getattr(network, "loss_weights", {}) if self.count else {}
        self.shifts_labels = getattr(network, "loss_type", None) == "ForCausalLM" and not getattr(
            getattr(network, "config", None), "is_encoder_decoder", False
        )
        self.uses_labels = uses_labels

    def items(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Term -> number of items in a batch, int64 scalars."""
        if self.count is None:
            return {"loss": self._labelled_items(batch)}
        return {name: torch.as_tensor(items) for name, items in self.count(batch).items()}

    def _labelled_items(self, batch: Mapping[str, Any]) -> torch.Tensor:
        named = batch if isinstance(batch, Mapping) else {}
        labels = None if self.uses_labels else named.get("shift_labels")
        if labels is None:
            labels = named.get("labels")
            if self.shifts_labels and isinstance(labels, torch.Tensor):
                labels = labels[..., 1:]
        if isinstance(labels, torch.Tensor) and labels.dim() > 1 and not labels.is_floating_point():
            return (labels != NO_LOSS).sum()
        return torch.as_tensor(find_batch_size(batch) or 1)

    def terms(self, loss: torch.Tensor, outputs: Any) -> dict[str, torch.Tensor]:
        """Term -> mean over the batch; together they make up the loss."""
        named = outputs.get("losses") if self.count is not None and isinstance(outputs, Mapping) else None
        return named or {"loss": loss}

    def total(self, means: Mapping[str, Any]) -> Any:
        """The loss that the means of its terms make up."""
        return sum(self.weights.get(name, 1.0) * mean for name, mean in means.items())


class StepShares:
    """How much each micro-batch's terms count in its optimizer step.

    Iterating gives for each micro-batch term -> its items / items of the step, times the number of processes, because
    gradients are averaged over processes. Empty for `WHOLE_STEP`.
    """

    def __init__(self, shares: Sequence[dict[str, torch.Tensor]] = ()):
        self.remaining = iter(shares)

    @classmethod
    def of(
        cls,
        items: Sequence[Mapping[str, torch.Tensor]],
        processes: int,
        sum_over_processes: Callable[[torch.Tensor], torch.Tensor],
    ) -> StepShares:
        """The shares of micro-batches with so many items of each term."""
        names = sorted(items[0])
        own = torch.stack([torch.stack([counts[name] for name in names]) for counts in items])  # (micro-batches, terms)
        total = sum_over_processes(own.sum(0)) if processes > 1 else own.sum(0)
        shares = own * processes / total.to(own.device).clamp(min=1)
        return cls([dict(zip(names, row.unbind(), strict=True)) for row in shares])

    def next(self) -> dict[str, torch.Tensor]:
        return next(self.remaining, {})


WHOLE_STEP = StepShares()  # one micro-batch of one process: its loss is the step's


def scaled(mean: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """A micro-batch's part of a step's mean; zero if it has no items, whose mean may be NaN."""
    return torch.where(share > 0, mean * share.to(mean.device), 0.0)


class LossMeter:
    """Running means of a model's named loss terms over optimizer steps, kept on the device so that no step waits."""

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, float | torch.Tensor] = {}
        self.mark()

    def add(self, means: Mapping[str, torch.Tensor], shares: Mapping[str, torch.Tensor]) -> None:
        """Add a micro-batch's terms with their shares in the step (`StepShares`); a missing share is the whole."""
        for name, mean in means.items():
            mean, share = mean.detach().float(), shares.get(name, shares.get("loss"))
            if share is not None:
                mean = scaled(mean, share)
            self.sums[name] = self.sums[name] + mean if name in self.sums else mean.clone()
            self.counts[name] = self.counts.get(name, 0) + (1 if share is None else share)

    def mark(self) -> None:
        """A step begins: `undo` comes back here."""
        self.marked = dict(self.sums), dict(self.counts)

    def undo(self, skipped: bool | torch.Tensor) -> None:
        """Remove what was added since `mark` if the step was skipped; `skipped` may be a bool tensor on the device."""
        sums, counts = self.marked
        if skipped is True:
            self.sums, self.counts = sums, counts
        elif skipped is not False:
            for name, total in self.sums.items():
                self.sums[name] = torch.where(skipped, sums.get(name, torch.zeros_like(total)), total)
                self.counts[name] = torch.where(skipped, counts.get(name, 0), self.counts[name])

    def take(self, average: Callable[[torch.Tensor], torch.Tensor] = lambda value: value) -> dict[str, float]:
        """Return the means so far, with sums averaged over processes by `average`, and reset."""
        names = sorted(self.sums)
        if not names:
            return {}
        sums = torch.stack([self.sums[name] for name in names])
        counts = torch.stack([torch.as_tensor(self.counts[name]).to(sums) for name in names])
        sums, counts = average(torch.stack([sums, counts]))
        self.sums, self.counts = {}, {}
        self.mark()
        return dict(zip(names, (sums / counts).tolist(), strict=True))


class MeanLosses:
    """The loss and its named terms over a whole data set: means over all items, whatever the batches.

    Args:
        finite_only: Leave batches out whose loss is not finite (`logging_nan_inf_filter`).
    """

    def __init__(self, terms: LossTerms, finite_only: bool = False):
        self.terms, self.finite_only = terms, finite_only
        self.sums: dict[str, torch.Tensor] = {}
        self.items: dict[str, torch.Tensor] = {}
        self.named: set[str] = set()

    def add(self, batch: Mapping[str, Any], loss: torch.Tensor, outputs: Any, repeated: bool = False) -> None:
        """Add one batch.

        Args:
            repeated: The batch only fills up a process's last step; its items do not count.
        """
        items = self.terms.items(batch)
        named = (outputs.get("losses") if isinstance(outputs, Mapping) else None) or {}
        means = self.terms.terms(loss, outputs) | named
        self.named |= set(named)
        exact = torch.float32 if loss.device.type == "mps" else torch.float64
        for name, mean in means.items():
            count = items.get(name, items.get("loss")).to(loss.device, exact) * (not repeated)
            if self.finite_only:
                count = count * mean.isfinite()
            value = torch.where(count > 0, mean.detach().to(exact) * count, 0.0)
            self.sums[name] = self.sums.get(name, 0) + value
            self.items[name] = self.items.get(name, 0) + count

    def compute(self, sum_over_processes: Callable[[torch.Tensor], torch.Tensor] | None = None) -> dict[str, float]:
        """`{"loss": …}` and for each named term `loss_<name>`; NaN if no item carries loss."""
        names = sorted(self.sums)
        if not names:
            return {}
        both = torch.stack([torch.stack([table[name] for name in names]) for table in (self.sums, self.items)])
        sums, items = both if sum_over_processes is None else sum_over_processes(both)
        means = dict(zip(names, (sums / items).tolist(), strict=True))
        counted = means if self.terms.count is not None else {"loss": means["loss"]}
        named = {f"loss_{name}": means[name] for name in names if name in self.named}
        return {"loss": float(self.terms.total(counted)), **named}
