"""What a metric is: values over a whole data set, each with the direction that is better."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

Direction = Literal["min", "max"]


class Metric:
    """Named values of one data set, computed from its batches and the model's outputs.

    One evaluation calls `reset`, then `update` for each batch, then `compute` in all processes. A subclass that keeps
    state of its own must combine it over processes in `compute`; states of torchmetrics do so themselves.

    Attributes:
        directions: Name of each value -> `min` if less is better, `max` if more is. Early stopping, the choice of the
            best checkpoint and plateau schedules follow it.
    """

    directions: Mapping[str, Direction] = {}

    def reset(self) -> None:
        """Forget all batches."""

    def update(self, batch: Mapping[str, Any], outputs: Any) -> None:
        """Add one batch and what the model returned for it."""

    def compute(self, loss: float | None = None) -> dict[str, float]:
        """The values.

        Args:
            loss: The mean loss over the data set, for values that follow from it, such as perplexity.
        """
        raise NotImplementedError


class RowMetric(Metric):
    """A `Metric` of rows of numbers (`gathered`), which are collected from batches and gathered over processes.

    Args:
        columns: Numbers in a row.
    """

    def __init__(self, columns: int):
        from metrics.gathered import GatheredRows

        self.gathered = GatheredRows(columns)

    def reset(self) -> None:
        self.gathered.reset()


class TorchMetrics(Metric):
    """A `Metric` made of metrics of torchmetrics.

    Args:
        metrics: Name of the value -> metric of torchmetrics, whose `compute` returns a scalar.
        directions: See `Metric`; all names of `metrics`.
        read: (batch, outputs) -> arguments of each metric's `update`, such as predictions and targets.
    """

    def __init__(
        self,
        metrics: Mapping[str, Any],
        directions: Mapping[str, Direction],
        read: Callable[[Mapping[str, Any], Any], tuple[Any, ...]],
    ):
        assert set(metrics) == set(directions), (sorted(metrics), sorted(directions))
        self.metrics, self.directions, self.read = dict(metrics), dict(directions), read

    def reset(self) -> None:
        for metric in self.metrics.values():
            metric.reset()

    def update(self, batch: Mapping[str, Any], outputs: Any) -> None:
        arguments = self.read(batch, outputs)
        for metric in self.metrics.values():
            metric.to(arguments[0].device).update(*arguments)

    def compute(self, loss: float | None = None) -> dict[str, float]:
        return {name: float(metric.compute()) for name, metric in self.metrics.items()}
