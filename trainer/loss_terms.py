"""Averages of named scalars between two log lines, kept on the device so that no step waits for the GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch


class LossMeter:
    """Running means of a model's loss terms: `{"action": …, "kl": …}` of every micro-batch since the last `take`."""

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int | torch.Tensor] = {}
        self.mark()

    def add(self, terms: Mapping[str, torch.Tensor]) -> None:
        """Adds each term, a scalar tensor, without moving it off its device."""
        for name, value in terms.items():
            value = value.detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
            self.counts[name] = self.counts.get(name, 0) + 1

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
        """Return the means so far, averaged over processes by `average`, and reset."""
        names = sorted(self.sums)
        if not names:
            return {}
        means = average(torch.stack([self.sums[name] / self.counts[name] for name in names]))
        self.sums, self.counts = {}, {}
        return dict(zip(names, means.tolist(), strict=True))
