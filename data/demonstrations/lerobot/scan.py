"""Read and check the steps of a LeRobot data set, and find the frames that belong to them.

Shapes: T steps of one episode, D dimensions of a signal.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow

from data.demonstrations.config import Config
from data.demonstrations.layouts import Episode, Keys, first_not_finite
from data.demonstrations.lerobot import INFO, read_info
from data.demonstrations.lerobot.frames import Clip, ClipFrames
from data.demonstrations.lerobot.metadata import (
    Feature,
    Metadata,
    Recorded,
    camera_name,
    column_names,
    read_metadata,
    read_table,
)
from data.demonstrations.lerobot.video import frames_of_episode, times_of
from data.demonstrations.source import TEXTS, EpisodeSource, without_frames
from data.files import files_below

STEPS = ("episode_index", "frame_index", "timestamp")  # columns that every data set has
STATE, ACTION = "observation.state", "action"


def files_of(folder: Path) -> list[Path]:
    """The files that a data set's content comes from."""
    parts = [folder / name for name in ("meta", "data", "videos")]
    return [file for part in parts if part.is_dir() for file in files_below(part)]


def scan_lerobot(folder: Path, files: list[Path], config: Config, process: Any) -> EpisodeSource:
    """The source of a LeRobot data set; its frames stay in the files until they are written to arrays.

    Raises:
        ValueError: metadata, columns and videos contradict each other, or lack a feature; nothing is guessed.
    """
    refuse_useless(folder, config, process)
    metadata = read_metadata(folder, config.rename)
    chosen = [e for e in metadata.episodes if not any(fnmatch.fnmatchcase(e.name, p) for p in config.exclude or ())]
    chosen = chosen[: config.max_episodes]
    if not chosen:
        raise ValueError(f"dataset.exclude leaves no episode of {folder}; leave a pattern out")
    cameras = choose_cameras(metadata, config) if process.is_multimodal and config.cameras != [] else {}
    if cameras and process.lazy_preprocess and not process.preload_data:
        remedy = "set lazy_preprocess: false, or preload_data: true"
        raise ValueError(f"lazy_preprocess would decode the videos of {folder} again for every sample; {remedy}")
    states = tuple(config.state_keys or [STATE])
    keys = Keys(config.action_key or ACTION, states, "observation.images" if cameras else None)
    table = Columns(metadata, [keys.action, *keys.state])
    episodes, clips, tolerance = [], [], config.timestamp_tolerance_s
    for recorded in chosen:
        episode, rows, timestamps = table.episode(recorded, keys, tolerance)
        clips.append([])
        for camera, key in cameras.items():
            clip, episode.frame_sizes[camera] = find_clip(metadata.features[key], recorded, rows, timestamps, tolerance)
            clips[-1].append(clip)
        episodes.append(episode)
    source = without_frames(folder, keys, episodes, config, process)
    source.details |= {"fps": metadata.fps, "image_keys": list(cameras.values())}
    if source.fit is not None:
        source.frames = ClipFrames(folder, clips, source.arrays["offsets"], source.fit)
    return source


def refuse_useless(folder: Path, config: Config, process: Any) -> None:
    """Raise ValueError for keys that mean nothing for a LeRobot data set."""
    if process.skip_mirrored_data:
        remedy = "leave mirrored ones out with dataset.exclude: [episode_3, …]"
        raise ValueError(f"skip_mirrored_data: {folder} is a LeRobot data set, which does not mark them; {remedy}")
    if config.control == "ee" and not (config.action_key and config.state_keys):
        raise ValueError(f"dataset.control: ee, but {folder} is a LeRobot data set; name action_key and state_keys")


def choose_cameras(metadata: Metadata, config: Config) -> dict[str, str]:
    """Camera -> feature, of those that are configured, in their order, or all, sorted."""
    found = {camera_name(key): key for key, feature in metadata.features.items() if feature.is_image}
    wanted = config.cameras or sorted(found)
    if config.missing_cameras == "mask":
        wanted = [camera for camera in wanted if camera in found]
    for camera in wanted:
        if camera not in found:
            missing = f"no camera `{camera}` in {metadata.folder}; it has {', '.join(found) or 'none'}"
            remedy = "name these, rename one with dataset.rename, or set dataset.missing_cameras: mask"
            raise ValueError(f"dataset.cameras: {missing}; {remedy}")
    return {camera: found[camera] for camera in wanted}


class Columns:
    """The columns of a data set's Parquet files; each file is read once."""

    def __init__(self, metadata: Metadata, signals: list[str]):
        self.metadata, self.signals = metadata, signals
        for key in signals:
            self.refuse_missing(key)
        features = metadata.features
        texts = [kind for kind in TEXTS if kind in features and features[kind].dtype == "string"]
        numbers = [name for name in ("task_index", "subtask_index") if name in features]
        self.keys = [*dict.fromkeys([*STEPS, *signals, *texts, *numbers])]
        self.file: Path | None = None

    def refuse_missing(self, key: str) -> None:
        feature = self.metadata.features.get(key)
        if feature is None or not feature.is_signal:
            usable = [name for name, other in self.metadata.features.items() if other.is_signal]
            has = f"no feature `{key}`" if feature is None else f"`{key}` as {feature.dtype}, not as numbers"
            remedy = "choose state_keys, action_key and rename after these"
            raise ValueError(f"{self.metadata.folder / INFO} has {has}; it has {', '.join(usable)}: {remedy}")

    def load(self, file: Path) -> None:
        """Read a file, and sort its rows by episode and frame."""
        names = {key: self.own_name(key) for key in self.keys}
        if missing := sorted({*names.values()} - {*column_names(file)}):
            known = ", ".join(column_names(file))
            raise ValueError(f"{file} has no column `{missing[0]}` of {INFO}; it has {known}: copy the data set again")
        self.file, self.table = file, read_table(file, [*names.values()]).combine_chunks()
        of_episode, frame = (self.table[name].to_numpy() for name in STEPS[:2])
        self.order = np.lexsort((frame, of_episode))
        self.frame, self.of_episode = frame[self.order], of_episode[self.order]

    def own_name(self, key: str) -> str:
        return self.metadata.features[key].name if key in self.metadata.features else key

    def episode(self, recorded: Recorded, keys: Keys, tolerance: float) -> tuple[Episode, np.ndarray, np.ndarray]:
        """An episode without frames, the rows (T,) of the file in which it is, and its timestamps (T,) in seconds."""
        if recorded.data != self.file:
            self.load(recorded.data)
        start, end = np.searchsorted(self.of_episode, [recorded.index, recorded.index + 1])
        if end - start != recorded.length or (self.frame[start:end] != np.arange(recorded.length)).any():
            differ = f"has {end - start} frames but meta/episodes says length {recorded.length}"
            remedy = f"copy the data set again, or exclude [{recorded.name}]"
            raise ValueError(f"{recorded.data}: episode {recorded.index} {differ}, from frame_index 0 on; {remedy}")
        rows = self.order[start:end]
        timestamps = self.table["timestamp"].to_numpy()[rows]
        self.refuse_times(recorded, timestamps, tolerance)
        actions = self.signal(keys.action, recorded, rows)
        states = np.concatenate([self.signal(key, recorded, rows) for key in keys.state], axis=1)
        return Episode(str(recorded.data), actions, states, {}, self.texts(rows)), rows, timestamps

    def refuse_times(self, recorded: Recorded, timestamps: np.ndarray, tolerance: float) -> None:
        """Raise ValueError for a frame that is not at frame_index / fps."""
        due = np.arange(recorded.length) / self.metadata.fps
        wrong = ~(np.abs(timestamps - due) <= tolerance + np.spacing(due.astype(np.float32)))
        if wrong.any():
            step = int(np.argmax(wrong))
            place = f"{recorded.data}: episode {recorded.index} frame {step} has timestamp {timestamps[step]:.6g} s"
            beyond = f"due at {due[step]:.6g} s, more than dataset.timestamp_tolerance_s {tolerance:g} away"
            raise ValueError(f"{place}, but is {beyond}; raise it, or exclude [{recorded.name}]")

    def signal(self, key: str, recorded: Recorded, rows: np.ndarray) -> np.ndarray:
        """(T, D) float64, finite."""
        feature = self.metadata.features[key]
        values = flat(self.table[feature.name].take(rows))
        if len(values) != len(rows) * feature.size:
            differ = f"{len(values)} values in {len(rows)} steps, but {INFO} says shape {list(feature.shape)}"
            place = f"{recorded.data}: `{feature.name}` of episode {recorded.index}"
            raise ValueError(f"{place} has {differ}; copy the data set again")
        values = values.to_numpy(zero_copy_only=False).astype(np.float64).reshape(len(rows), -1)
        if (wrong := first_not_finite(values)) is not None:
            step, value = wrong
            place = f"{recorded.data}: `{feature.name}` is {value} in episode {recorded.index} at step {step}"
            raise ValueError(f"{place}; exclude [{recorded.name}]")
        return values

    def texts(self, rows: np.ndarray) -> dict[str, list[str]]:
        """Instruction, reasoning and subtask of every step: from columns of these names, or the tasks' texts."""
        columns = {kind: self.own_name(kind) for kind in TEXTS if kind in self.keys}
        texts = {kind: self.table[name].take(rows).to_pylist() for kind, name in columns.items()}
        for kind, name, known in (
            ("instruction", "task_index", self.metadata.tasks),
            ("subtask", "subtask_index", self.metadata.subtasks),
        ):
            if kind not in texts and name in self.keys and known:
                numbers = self.table[self.own_name(name)].take(rows).to_pylist()
                texts[kind] = [known.get(number, "") for number in numbers]
        if "subtask" in texts:
            texts.setdefault("reasoning", texts["subtask"])
        return {kind: [line or "" for line in lines] for kind, lines in texts.items()}


def flat(column: pyarrow.ChunkedArray) -> pyarrow.Array:
    """All values of a column of numbers, or of lists of any depth."""
    array = column.combine_chunks()
    while True:
        if isinstance(array, pyarrow.ExtensionArray):
            array = array.storage
        if not hasattr(array, "flatten") or not pyarrow.types.is_nested(array.type):
            return array
        array = array.flatten()


def find_clip(
    feature: Feature, recorded: Recorded, rows: np.ndarray, timestamps: np.ndarray, tolerance: float
) -> tuple[Clip, tuple[int, int]]:
    """The frames of a camera in an episode, and their size (H, W)."""
    height, width = sorted(feature.shape, key=lambda side: side == 3)[:2]  # (H, W, 3) or (3, H, W)
    if feature.dtype == "image":
        return Clip(recorded.data, None, feature.name, rows), (height, width)
    file, start = recorded.videos[feature.name]
    times = times_of(file, file.stat().st_mtime_ns if file.exists() else 0)
    if times.size != (height, width):
        sizes = f"{times.size[0]}x{times.size[1]} but {INFO} says {height}x{width}"
        raise ValueError(f"{file} has frames of {sizes}; copy it again, or leave the camera out of dataset.cameras")
    return Clip(file, frames_of_episode(times, recorded, start, timestamps, tolerance)), times.size


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
