"""The observations of a LeRobot data set one by one, as a robot would deliver them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

from data.demonstrations.config import Config
from data.demonstrations.layouts import Keys
from data.demonstrations.lerobot.metadata import read_metadata
from data.demonstrations.lerobot.scan import ACTION, Columns, find_clip


def observations(
    folder: Path, config: Config, state_keys: list[str], image_keys: list[str], may_lack: bool
) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Yield episode, step and observation: {feature: its row}, with the instruction if there is one.

    Args:
        config: of the run: `rename`, `timestamp_tolerance_s`, `action_key`.
        may_lack: cameras that the data set does not have are left out.

    Raises:
        ValueError: as `scan_lerobot`.
    """
    metadata, tolerance = read_metadata(folder, config.rename), config.timestamp_tolerance_s
    if may_lack:
        image_keys = [key for key in image_keys if key in metadata.features]
    if missing := [key for key in image_keys if key not in metadata.features]:
        raise ValueError(f"{folder} has no camera `{missing[0]}`; give one this name with dataset.rename")
    keys = Keys(config.action_key or ACTION, tuple(state_keys), None)
    table = Columns(metadata, [keys.action, *keys.state])
    for recorded in metadata.episodes:
        episode, rows, timestamps = table.episode(recorded, keys, tolerance)
        states = {key: table.signal(key, recorded, rows) for key in keys.state}
        clips = [find_clip(metadata.features[key], recorded, rows, timestamps, tolerance)[0] for key in image_keys]
        frames = zip(*(clip.read() for clip in clips), strict=True) if clips else repeat((), recorded.length)
        for step, images in enumerate(frames):
            observation = {key: values[step] for key, values in states.items()}
            observation |= dict(zip(image_keys, images, strict=True))
            if "instruction" in episode.texts:
                observation["instruction"] = episode.texts["instruction"][step]
            yield recorded.name, step, observation
