"""Convert demonstrations: HDF5 in ACT's or IL-Studio's layout to LeRobot v3.0, and LeRobot to HDF5 in ACT's layout.

Shapes: T steps of an episode, H and W of a frame.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
from tqdm import tqdm

from data.demonstrations.config import Config, included
from data.demonstrations.frames import BLOCK_FRAMES, fitted
from data.demonstrations.hdf5 import dataset_at, names_in, read, reading
from data.demonstrations.images import FrameFit
from data.demonstrations.layouts import Keys, read_episode, resolve_keys
from data.demonstrations.lerobot import INFO, is_lerobot
from data.demonstrations.lerobot.metadata import Metadata, Recorded, camera_name, read_metadata
from data.demonstrations.lerobot.scan import ACTION, STATE, Columns, find_clip
from data.demonstrations.lerobot.writer import DatasetWriter, Encoding, EpisodeContent
from storage import atomic

ENVIRONMENT_STATE = "observation.environment_state"
# LeRobot's names of what ACT's layout stores; any other `observations/NAME` is `observation.NAME`.
ACT_NAMES = {STATE: "observations/qpos", ENVIRONMENT_STATE: "observations/env_state", ACTION: "action"}
# Texts by the HDF5 paths under which `read_texts` finds them again.
ACT_TEXTS = {"instruction": "language_instruction", "reasoning": "substep_reasonings", "subtask": "reasoning/subtask"}
IMAGES = "observation.images."
OTHER_STATE = "observations/state"  # of simulators without joints
OTHER_CONTROL = ("observations/state_joint", "observations/state_ee")  # of IL-Studio: alternatives of the state
TOLERANCE_S = 1e-4  # of timestamps, as lerobot has it
MADE = ("timestamp", "frame_index", "episode_index", "index", "task_index", "subtask_index")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to convert HDF5; `fps` is used for recordings that do not say it, `instruction` likewise.

    `config` chooses episodes, cameras, layout and action; every signal under `observations` is a feature, and
    `state_keys` matter only in recordings without the layout's state.
    """

    fps: float | None
    instruction: str
    encoding: Encoding
    robot_type: str | None = None
    config: Config = dataclasses.field(default_factory=Config)


def convert(source: Path, out: Path, settings: Settings) -> str:
    """Convert a folder to the other format: LeRobot to ACT's HDF5, HDF5 to LeRobot; returns what was written.

    Raises:
        ValueError: `source` holds neither, or cannot be converted; nothing is written.
    """
    if not source.is_dir():
        raise ValueError(f"{source} is no folder; name a folder of episodes (*.hdf5) or a LeRobot data set")
    if is_lerobot(source, "auto"):
        return f"{to_act(source, out)} episodes in ACT's HDF5 layout in {out}"
    return f"{to_lerobot(source, out, settings)} episodes as a LeRobot data set in {out}"


@contextlib.contextmanager
def into_empty(out: Path) -> Iterator[Path]:
    """A staging folder that gets the name `out` at the end; nothing is left after an error.

    Raises:
        ValueError: `out` is a file, or a folder that is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out {out} is not empty; name a new or an empty folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = out.with_name(f".{out.name}.writing-{os.getpid()}")
    atomic.discard(staging)
    staging.mkdir()
    try:
        yield staging
        atomic.publish(staging, out)
    except BaseException:
        atomic.discard(staging)
        raise


def to_lerobot(source: Path, out: Path, settings: Settings) -> int:
    """Write all episodes of a folder of HDF5 files as a LeRobot data set; returns their number.

    Raises:
        ValueError: a file cannot be used, or its rate is unknown; nothing is written.
    """
    files = included(source, settings.config.exclude)[: settings.config.max_episodes]
    if not files:
        raise ValueError(f"{source} holds no episode (*.hdf5, *.h5) and no {INFO}; name a folder that does")
    with reading(files[0]) as root:
        keys = resolve_keys(root, dataclasses.replace(settings.config, state_keys=None), True)
        if keys.state[0] not in root:
            keys = dataclasses.replace(keys, state=tuple(settings.config.state_keys or [OTHER_STATE]))
        fps = settings.fps or stored_rate(root)
    if fps is None:
        raise ValueError(f"{files[0]} does not say its rate; give it in frames per second: --fps 50")
    with into_empty(out) as staging:
        writer = DatasetWriter(staging, fps, settings.robot_type, settings.encoding)
        for file in tqdm(files, unit="episode", disable=None):
            with reading(file) as root:
                if (rate := stored_rate(root)) not in (None, fps):
                    raise ValueError(f"{file} has {rate:g} frames per second, others {fps:g}; convert them separately")
                writer.add(episode_content(root, keys, settings))
        writer.close()
    return len(files)


def stored_rate(root: h5py.File) -> float | None:
    """Frames per second of a recording: the attribute `fps`, or IL-Studio's `freq`."""
    value = root.attrs["fps"] if "fps" in root.attrs else read(root["freq"]) if "freq" in root else None
    return None if value is None else float(np.ravel(value)[0])


def episode_content(root: h5py.File, keys: Keys, settings: Settings) -> EpisodeContent:
    """What a LeRobot data set stores of an episode file."""
    episode = read_episode(root, keys, settings.config)
    steps = len(episode.actions)
    signals = {ACTION: episode.actions, STATE: episode.states}
    group = root.get("observations")
    for name in names_in(group) if isinstance(group, h5py.Group) else ():
        key = f"observations/{name}"
        dataset = group[name]
        is_signal = isinstance(dataset, h5py.Dataset) and dataset.ndim in (1, 2) and dataset.dtype.kind in "fiu"
        if is_signal and len(dataset) == steps and key not in (*keys.state, *OTHER_CONTROL):
            if lerobot_name(key) in signals:
                raise ValueError(f"{root.filename}: {key} and the state would both be `{STATE}`; rename one of them")
            signals[lerobot_name(key)] = np.asarray(read(dataset)).reshape(steps, -1)
    frames = {}
    for camera, size in episode.frame_sizes.items():
        frames[f"{IMAGES}{camera}"] = recorded_frames(dataset_at(root, f"{keys.images}/{camera}"), size)
    texts = dict(episode.texts)
    tasks = texts.pop("instruction", [settings.instruction] * steps)
    return EpisodeContent({key: values.astype(np.float32) for key, values in signals.items()}, tasks, texts, frames)


def lerobot_name(key: str) -> str:
    names = {act: name for name, act in ACT_NAMES.items()}
    return names.get(key, key.replace("observations/", "observation."))


def recorded_frames(frames: h5py.Dataset, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Yield the frames (H, W, 3) uint8 of a camera."""
    fit = FrameFit("keep", *size)
    for first in range(0, len(frames), BLOCK_FRAMES):
        yield from fitted(frames, first, first + BLOCK_FRAMES, fit).transpose(0, 2, 3, 1)


def to_act(source: Path, out: Path) -> int:
    """Write all episodes of a LeRobot data set as HDF5 files in ACT's layout; returns their number.

    Raises:
        ValueError: the data set contradicts itself, or lacks state or action; nothing is written.
    """
    metadata = read_metadata(source, {})
    signals = [key for key, feature in metadata.features.items() if feature.is_signal and key not in MADE]
    keys = Keys(ACTION, (STATE,), None)
    table = Columns(metadata, [*dict.fromkeys([ACTION, STATE, *signals])])
    with into_empty(out) as staging:
        for recorded in tqdm(metadata.episodes, unit="episode", disable=None):
            with h5py.File(staging / f"{recorded.name}.hdf5", "w") as root:
                write_act(root, metadata, table, recorded, keys)
    return len(metadata.episodes)


def write_act(root: h5py.File, metadata: Metadata, table: Columns, recorded: Recorded, keys: Keys) -> None:
    """Write one episode."""
    episode, rows, timestamps = table.episode(recorded, keys, TOLERANCE_S)
    root.attrs["fps"] = metadata.fps
    for key in table.signals:
        name = ACT_NAMES.get(key, key.replace("observation.", "observations/", 1))
        root[name] = table.signal(key, recorded, rows).astype(np.float32)
    for kind, lines in episode.texts.items():
        one = lines[:1] if len({*lines}) == 1 else lines
        root.create_dataset(ACT_TEXTS[kind], data=np.asarray(one, dtype=object), dtype=h5py.string_dtype())
    for key, feature in metadata.features.items():
        if feature.is_image:
            clip, size = find_clip(feature, recorded, rows, timestamps, TOLERANCE_S)
            name, shape = f"observations/images/{camera_name(key)}", (recorded.length, *size, 3)
            target = root.create_dataset(name, shape, np.uint8, chunks=(1, *size, 3), compression="lzf")
            for step, frame in enumerate(clip.read()):
                target[step] = frame
