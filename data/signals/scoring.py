"""What eval.py writes of signals: scores beside those of baselines, tables by channel, class and subject, pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.signals.codes import Codes
from data.signals.dataset import SignalSet
from metrics import report as files
from metrics.classification import GroupedClassMetric
from metrics.language import LanguageMetric
from metrics.metric import Metric
from metrics.signal_baselines import Blocks, baseline_bits
from metrics.signals import BitsPerSample, ValueErrors

MOST_SHOWN = 20  # subjects that are printed


def metric_of(described: dict[str, Any], dataset: SignalSet) -> Metric:
    """The scores of a held-out set.

    Args:
        described: The content of signals.json.
    """
    target, tokenizer = described["target"], dataset.tokenizer
    if target == "class":
        return GroupedClassMetric(described["classes"], described["groups"])
    if target == "text":
        return LanguageMetric()
    if target == "values":
        return ValueErrors()
    ids_per_sample = tokenizer.quantizers / tokenizer.hop if isinstance(tokenizer, Codes) else 1.0
    return BitsPerSample(described["channel_names"], ids_per_sample)


@dataclass
class Report:
    """Called by eval.py with the metric that has scored a data set; picklable.

    Args:
        train: The training split, to which baselines are fitted.
        channels: Names.
    """

    train: SignalSet
    channels: Sequence[str]

    def __call__(self, split: str, dataset: Any, metric: Any, scores: dict[str, float], folder: Path) -> list[str]:
        """Write the files of one split into `folder`; returns lines for people."""
        folder = folder if split == "validation" else folder / split
        folder.mkdir(parents=True, exist_ok=True)
        lines: list[str] = []
        if isinstance(metric, BitsPerSample):
            rows = self.channel_rows(dataset, metric)
            lines = ["bits a sample, beside baselines of the same ids:", *files.label_table(rows)]
            files.write_table(folder / "labels.csv", rows)
            scores = {**scores, "baselines": {name: rows[-1][name] for name in list(rows[-1])[2:]}}
        elif isinstance(metric, GroupedClassMetric):
            lines = self.class_tables(metric, folder)
        files.write_scores(folder, scores)
        return [*lines, f"scores and tables in {folder}"]

    def channel_rows(self, dataset: SignalSet, metric: BitsPerSample) -> list[dict[str, Any]]:
        """A row for each channel, and one of their means: name, the model's bits, the baselines' bits."""
        is_ordered = not isinstance(dataset.tokenizer, Codes)
        decode = dataset.tokenizer.decode if is_ordered else None
        baselines = baseline_bits(ids_of(self.train), ids_of(dataset), dataset.tokenizer.vocab_size, decode)
        columns = {"model": metric.per_channel()} | {
            name: bits * metric.ids_per_sample for name, bits in baselines.items()
        }
        rows = [
            {"label": channel, **{name: float(values[number]) for name, values in columns.items()}}
            for number, channel in enumerate(self.channels)
        ]
        known = {name: values[~np.isnan(values)] for name, values in columns.items()}
        means = {name: float(values.mean()) if len(values) else float("nan") for name, values in known.items()}
        return [*rows, {"label": "mean", **means}]

    def class_tables(self, metric: GroupedClassMetric, folder: Path) -> list[str]:
        """Write tables of classes, of their confusion and of subjects; returns the first two as lines."""
        rows, groups = metric.per_label(), metric.per_group()
        files.write_table(folder / "labels.csv", rows)
        files.draw_confusion(folder, metric.labels, metric.confusion_matrix())
        files.write_table(folder / "subjects.csv", groups)
        by_group = files.label_table(groups) if 1 < len(groups) <= MOST_SHOWN else []
        return [*metric.notes(), *files.label_table(rows), *by_group]


def ids_of(dataset: SignalSet) -> Blocks:
    """The ids of a split, (C, n) at a time."""
    return lambda: (ids for _, ids in dataset.recording_ids())
