"""Check files that keys name, and monitors against the metrics of the data, before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator

from loader.errors import Problems
from loader.resolve.run_config import RunConfig
from storage.suggestions import nearest

FILES = ("deepspeed", "fsdp_config", "accelerator_config")  # each a file, or its content
TYPO = 0.85  # similarity from which a name is taken for a misspelt one


def check_named_things(run: RunConfig, problems: Problems) -> None:
    """Add a problem for each file that does not exist, and each monitor that misspells a metric of the data."""
    for key in FILES:
        value = run.trainer.get(key)
        if (
            isinstance(value, str)
            and value.strip()[:1] not in ("", "{")
            and not os.path.isfile(os.path.expanduser(value))
        ):
            problems.add(f"`{key}: {value}`{run.place(key)} does not exist; name a file, or write its content here")
    _monitors(run, problems)


def _monitors(run: RunConfig, problems: Problems) -> None:
    """Names that no shipped metric has are left to the start, which knows loss terms and the sets' names."""
    if run.callbacks or run.dataset is None or not hasattr(run.dataset.module, "metric_names"):
        return  # callbacks may log metrics of their own
    known = {"loss", *run.dataset.module.metric_names()}
    for key, monitor in _monitored(run):
        word = monitor.replace("/", "_").removeprefix("valid_").removeprefix("val_").removeprefix("eval_")
        near = nearest(word, known, TYPO)
        if word not in known and near is not None:
            problems.add(f"`{key}: {monitor}`{run.place(key)} is not logged; did you mean `eval_{near}`?")


def _monitored(run: RunConfig) -> Iterator[tuple[str, str]]:
    """The keys that name a metric, and the names."""
    if run.early_stopping is not None and run.early_stopping.strict:
        yield "early_stopping.monitor", run.early_stopping.monitor
    for name in run.checkpointing.monitors if run.checkpointing is not None else ():
        yield "checkpointing.monitor", name
    for key, name in (
        ("metric_for_best_model", run.trainer.get("metric_for_best_model")),
        ("scheduler.monitor", run.schedule.monitor),
    ):
        if name is not None:
            yield key, name
