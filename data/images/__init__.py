"""Images with labels: one class each, or any number of labels; from tables, folders, Parquet files or the hub.

A sample is one image at training size. Importing this needs nothing but the standard library, so that a configuration
is checked quickly.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from data.images.config import Config
from storage.config_keys import lazy

MADE = dict.fromkeys(
    ("fashion_mosaics", "fashion_mnist"),
    "a folder with Fashion-MNIST's idx files, or zalando-datasets/fashion_mnist of the hub",
)
PROCESS_KEYS = frozenset({"cache_dir", "model_name_or_path", "trust_remote_code"})


def metric_names() -> tuple[str, ...]:
    """Names of what the metrics may compute; a configuration that misspells one is refused."""
    from metrics.scores import MULTI_LABEL_DIRECTIONS, SINGLE_LABEL_DIRECTIONS

    return (*MULTI_LABEL_DIRECTIONS, *SINGLE_LABEL_DIRECTIONS)


def check(config: Config, run: Any) -> list[str]:
    """Problems that can be seen without decoding images, one line each; the tables are read."""
    from data.images.checks import problems_of

    return problems_of(config, run, tuple(MADE))


def with_tables(config: Config, run: Any) -> Config:
    """The config with the tables that `make` wrote in place of a ready name (`MADE`); the run itself keeps the name.

    Raises:
        ValueError: they are not there yet.
    """
    if config.path not in MADE:
        return config
    folder = Path(run.cache_dir) / "datasets" / config.path
    files = {
        f"{key}path": folder / f"labels_{split}.csv"
        for key, split in (("", "train"), ("eval_", "val"), ("test_", "test"))
    }
    if not all(file.is_file() for file in files.values()):
        place = run.place("dataset.path")
        remedy = f"python prepare.py --task_name {run.task} --source SOURCE, {MADE[config.path]}"
        raise ValueError(f"`dataset.path: {config.path}`{place} is not made yet: {remedy}")
    return dataclasses.replace(config, **{key: str(file) for key, file in files.items()})


def make(config: Config, run: Any, source: str | None) -> Path:
    """Make the ready data set that a configuration names, for `prepare.py`; returns its folder.

    Raises:
        ValueError: the configuration names none, or the source is missing or not readable.
    """
    if config.path not in MADE:
        raise ValueError(f"`dataset.path: {config.path}` is not made by prepare.py; it makes {', '.join(MADE)}")
    from data.cache import open_or_build
    from data.images.fashion import MAKERS

    folder = Path(run.cache_dir) / "datasets" / config.path
    if (folder / "labels_test.csv").is_file():
        return folder
    if source is None:
        raise ValueError(f"--source is missing: {MADE[config.path]}")
    place = Path(source).expanduser()
    return open_or_build(folder.parent, config.path, lambda staging: MAKERS[config.path](staging, place))[0]


def build(config: Config, run: Any) -> Any:
    """The `Bundle` of the configured images; raises ValueError if they cannot be used."""
    from data.images.build_bundle import assemble

    return assemble(with_tables(config, run), run)


__getattr__ = lazy(__name__, Processor="data.images.processor")
