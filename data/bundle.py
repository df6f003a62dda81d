"""What every kind of data hands to the trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

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
        test_datasets: sets that are scored once, at the end, by name.
        train_transform: (batch, generator) -> batch, such as augmentation, for training batches only, after collate and
            on the model's device. The generator is seeded by seed, step and micro-batch: the same after a resume.
        dims: sizes the model is built for.
        files: file name -> JSON value, saved beside the model so that it can be used without the data.
        summary: lines for people.
        metrics: name of an evaluation or test set -> its metric. `train`: values that follow from the mean training
            loss; it never sees a batch.
        train_metric: the metric of the training set where that is scored like a held-out one (`eval.py --split train`).
        units: what a sample consists of -> how many, such as `{"tokens": 1024}`; logged in total and per second.
        processor: see `data.processor`; saved beside the model with `save_pretrained(folder)`. None: the module's
            `Processor` needs `files` alone, or there is none.
        statistics: of the training split, for losses that ask for them: `samples`, `positives` of each label.
        report: (split, data set, its metric, its scores, folder) -> lines for people, after eval.py has scored a set;
            may write tables and pictures into the folder.
        free_run: (model, data set, folder, seed, steps=…, samples=…, temperature=…, top_k=…, top_p=…) -> scores: lets
            the model continue held-out samples, after eval.py has scored a set with --samples, and after checkpoints
            (`eval_runner`); may write tables and pictures into the folder. A ValueError if the model cannot. Its
            attribute `without_effect`, if there is one, has options that change nothing, and why.
    """

    train_dataset: Any
    eval_datasets: dict[str, Any]
    collate: Callable[[Any], dict[str, Any]]
    sampler: Callable[[int], Iterable[int]]
    dims: dict[str, int]
    files: dict[str, dict] = field(default_factory=dict)
    summary: list[str] = field(default_factory=list)
    metrics: dict[str, Metric] = field(default_factory=dict)
    train_metric: Metric | None = None
    units: dict[str, int] = field(default_factory=dict)
    processor: Any = None
    statistics: dict[str, Any] = field(default_factory=dict)
    report: Callable[..., list[str]] | None = None
    free_run: Callable[..., dict[str, float]] | None = None
    test_datasets: dict[str, Any] = field(default_factory=dict)
    train_transform: Callable[[dict[str, Any], Any], dict[str, Any]] | None = None

    def test_sets_by_prefix(self) -> dict[str, Any]:
        """The test sets by the prefix of their scores: `test`, or `test_<name>` of several."""
        return {_prefix("test", name, self.test_datasets): dataset for name, dataset in self.test_datasets.items()}

    def metrics_by_prefix(self) -> dict[str, Metric]:
        """The metrics by the prefix of their values in the log; `train` for those of the training loss."""
        kinds = {"eval": self.eval_datasets, "test": self.test_datasets}
        prefixes = {name: _prefix(kind, name, sets) for kind, sets in kinds.items() for name in sets}
        return {prefixes.get(name, name): metric for name, metric in self.metrics.items()}

    def directions(self) -> dict[str, str]:
        """Name of each value that a metric computes -> `min` or `max`."""
        return {name: direction for metric in self.metrics.values() for name, direction in metric.directions.items()}


def _prefix(kind: str, name: str, sets: dict[str, Any]) -> str:
    return kind if len(sets) == 1 else f"{kind}_{name}"


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
