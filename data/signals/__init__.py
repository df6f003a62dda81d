"""Signals: recordings of any number of channels, sampled evenly in time; predicted next, or classified.

A sample is a window of one recording. Importing this needs nothing but the standard library, so that a configuration
can be checked in no time.
"""

from __future__ import annotations

import os
from typing import Any

from data.signals.config import Config

PROCESS_KEYS = frozenset({"cache_dir"})


def check(config: Config, run: Any) -> list[str]:
    """Problems that show without reading recordings, one line each."""
    if config.path is None:
        return ["dataset.path is not set; name a recording, a folder of recordings or a list of them"]
    return [
        f"dataset.{name}: {path} does not exist; name a recording, a folder of recordings or a list of them"
        for name in ("path", "eval_path", "test_path")
        for path in config.paths(name)
        if not os.path.exists(os.path.expanduser(path))
    ]


def build(config: Config, run: Any) -> Any:
    """The `Bundle` of the configured recordings; raises ValueError if they cannot be used."""
    from data.signals.build_bundle import assemble

    problems = check(config, run)
    if problems:
        raise ValueError(problems[0])
    return assemble(config, run)


def __getattr__(name: str) -> Any:
    """`Processor`, imported when asked for."""
    if name == "Processor":
        from data.signals.processor import Processor

        return Processor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
