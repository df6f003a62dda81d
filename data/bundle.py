"""What every kind of data hands to the trainer."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from metrics.metric import Metric


@dataclass
class Bundle:
    """Everything a run needs from its data, in plain values.

    Attributes:
        train_dataset: map-style, with `__len__`, `__getitem__` and the vectorised `__getitems__(indices)`.
        eval_datasets: held-out sets by name; empty when nothing is held out.
        collate: picklable; turns what a dataset's `__getitems__` returned, or a list of single samples, into
            one dict of batch tensors.
        sampler: seed -> iterable of training indices with `__len__`, `set_epoch(epoch)` and
            `set_position(samples_done)`; its order is a pure function of (seed, epoch).
        dims: sizes the model is built for.
        files: file name -> JSON value, saved beside the model so that it can be used without the data.
        summary: lines for people.
        metrics: name of an evaluation or test set -> its metric. `train`: values that follow from the mean training
            loss; it never sees a batch.
        units: what a sample consists of -> how many, such as `{"tokens": 1024}`; logged in total and per second.
        processor: see `data.processor`; saved beside the model with `save_pretrained(folder)`. None: the module's
            `Processor` needs `files` alone, or there is none.
    """

    train_dataset: Any
    eval_datasets: dict[str, Any]
    collate: Callable[[Any], dict[str, Any]]
    sampler: Callable[[int], Iterable[int]]
    dims: dict[str, int]
    files: dict[str, dict] = field(default_factory=dict)
    summary: list[str] = field(default_factory=list)
    metrics: dict[str, Metric] = field(default_factory=dict)
    units: dict[str, int] = field(default_factory=dict)
    processor: Any = None

    def log_metrics(self) -> dict[str, Metric]:
        """The metrics by the names that the log gives their sets: a single evaluation set is `eval`."""
        sets = list(self.eval_datasets)
        return {"eval" if sets == [name] else name: metric for name, metric in self.metrics.items()}
