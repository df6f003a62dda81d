"""Tracks: videos with instances in their frames, and which instances are the same individual.

A sample is a clip of consecutive frames. Importing this needs nothing but the standard library, so that a configuration
can be checked in no time.
"""

from __future__ import annotations

from typing import Any

from data.tracks.config import Config

PROCESS_KEYS = frozenset({"cache_dir"})


def check(config: Config, run: Any) -> list[str]:
    """Problems that can be seen without reading labels, one line each."""
    from data.tracks.find import find_sources

    problems = []
    for name in ("train", "val", "test"):
        if getattr(config, f"{name}_dataset") is not None:
            try:
                find_sources(config.split(name), f"dataset.{name}_dataset", config.images)
            except ValueError as error:
                problems.append(str(error))
    return problems


def __getattr__(name: str) -> Any:
    """`Processor`, imported when asked for."""
    if name == "Processor":
        from data.tracks.processor import Processor

        return Processor
    raise AttributeError(name)


def build(config: Config, run: Any) -> Any:
    """The `Bundle` of the configured recordings; raises ValueError if they cannot be used."""
    from data.tracks.build_bundle import assemble

    return assemble(config, run)
