"""The observations of a LeRobot data set one by one, as a robot would deliver them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

from data.demonstrations.config import Config
from data.demonstrations.layouts import Keys
from data.demonstrations.lerobot import read_info
from data.demonstrations.lerobot.metadata import read_metadata
from data.demonstrations.lerobot.scan import ACTION, Columns, find_clip


class Observations:
    """The episodes of a data set: name -> where they are; `read` gives the observations of one.

    Args:
        config: of the run: `rename`, `timestamp_tolerance_s`, `action_key`.
        may_lack: cameras that the data set does not have are left out.

    Raises:
        ValueError: as `scan_lerobot`.
    """

    def __init__(self, folder: Path, config: Config, state_keys: list[str], image_keys: list[str], may_lack: bool):
        described = read_info(folder)["features"]  # as in a mixture, some may have the policy's names already
        rename = {name: new for name, new in config.rename.items() if name in described}
        self.metadata, self.tolerance = read_metadata(folder, rename), config.timestamp_tolerance_s
        known = self.metadata.features
        self.image_keys = [key for key in image_keys if key in known or not may_lack]
        if missing := [key for key in self.image_keys if key not in known]:
            raise ValueError(f"{folder} has no camera `{missing[0]}`; give one this name with dataset.rename")
        self.keys = Keys(config.action_key or ACTION, tuple(state_keys), None)
        self.table = Columns(self.metadata, [self.keys.action, *self.keys.state])
        self.episodes = {recorded.name: recorded for recorded in self.metadata.episodes}

    def read(self, name: str) -> Iterator[dict[str, Any]]:
        """Yield the observations of an episode: {feature: its row}, and the texts of the step."""
        recorded = self.episodes[name]
        episode, rows, timestamps = self.table.episode(recorded, self.keys, self.tolerance)
        states = {key: self.table.signal(key, recorded, rows) for key in self.keys.state}
        clips = [
            find_clip(self.metadata.features[key], recorded, rows, timestamps, self.tolerance)[0]
            for key in self.image_keys
        ]
        frames = zip(*(clip.read() for clip in clips), strict=True) if clips else repeat((), recorded.length)
        for step, images in enumerate(frames):
            observation = {key: values[step] for key, values in states.items()}
            observation |= dict(zip(self.image_keys, images, strict=True))
            yield observation | {kind: lines[step] for kind, lines in episode.texts.items()}
