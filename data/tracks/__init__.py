"""Tracks: videos with instances in their frames, and which instances are the same individual.

A sample is a clip of consecutive frames. Importing this needs nothing but the standard library, so that a configuration
is checked quickly.
"""

from __future__ import annotations

from typing import Any

from data.tracks.config import Config
from data.tracks.config import PredictFlags as PredictFlags
from storage.config_keys import lazy

PROCESS_KEYS = frozenset({"cache_dir"})


def check(config: Config, run: Any) -> list[str]:
    """Problems that can be seen without reading labels, one line each."""
    from data.tracks.augment import Augment
    from data.tracks.find import find_sources

    problems = []
    for name in ("train", "val", "test"):
        section, split = f"dataset.{name}_dataset", config.split(name)
        try:
            if name == "train" or split.has_source:
                find_sources(split, section, config.images)
            augment = Augment(split.augmentations or {})
            if not config.images and (useless := augment.without_images()):
                problems.append(f"{section}.augmentations.{useless[0]} has no effect with images: false; leave it out")
        except ValueError as error:
            problems.append(str(error) if str(error).startswith(section) else f"{section}: {error}")
    anchors = config.split("train").anchors
    count = anchors if isinstance(anchors, int) else 1 if isinstance(anchors, str) else len(anchors)
    if config.tracker.max_angle_diff is not None and count < 2:
        needs = f"needs the direction between two anchors; dataset.train_dataset.anchors is {anchors}"
        problems.append(f"dataset.tracker.max_angle_diff: {config.tracker.max_angle_diff} {needs}")
    return problems


def build(config: Config, run: Any) -> Any:
    """The `Bundle` of the configured recordings; raises ValueError if they cannot be used."""
    from data.tracks.build_bundle import assemble

    return assemble(config, run)


__getattr__ = lazy(__name__, Processor="data.tracks.processor")
