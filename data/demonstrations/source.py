"""All episodes of one folder, read from a cache on disk, from memory, or from the files.

Shapes: E episodes, N steps of all of them, S state and A action dimensions, h and w in training.
"""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data import cache
from data.demonstrations.config import Config
from data.demonstrations.frames import ArrayFrames, FileFrames
from data.demonstrations.hdf5 import reading
from data.demonstrations.images import FrameFit, training_size
from data.demonstrations.layouts import MIRRORED_ATTRIBUTES, Episode, Keys, read_episode, resolve_keys

MOST_LINES = 20
FEW = 3  # files that have the same problem and are each named


class BadEpisodes(ValueError):
    """Episode files that cannot be used; `problems` has a line for each, and one with the remedy.

    Args:
        folder: That all files are in.
        problems: File -> what is wrong with it, which names the file.
    """

    def __init__(self, folder: Path, problems: dict[Path, str]):
        self.files = list(problems)
        kinds: dict[str, list[str]] = {}
        for file, line in problems.items():
            kinds.setdefault(line.replace(str(file), "…"), []).append(line)
        lines = []
        for same in kinds.values():
            if len(same) > FEW:
                lines.append(f"{same[0]} (and the same in {len(same) - 1} more files)")
            else:
                lines += same
        self.problems = lines[:MOST_LINES]
        if len(lines) > MOST_LINES:
            self.problems.append(f"{len(lines) - MOST_LINES} more problems in {folder}")
        if len(problems) > 1 and len(kinds) > 1:
            names = ", ".join(str(file.relative_to(folder)) for file in self.files[:MOST_LINES])
            more = ", …" if len(problems) > MOST_LINES else ""
            self.problems.append(
                f"{len(problems)} files cannot be used; dataset.exclude: [{names}{more}] leaves them out"
            )
        super().__init__(self.problems[0] if len(problems) == 1 else " | ".join(self.problems))


TEXTS = ("instruction", "reasoning", "subtask")


@dataclass
class EpisodeSource:
    """Steps of all episodes of a folder; the rows of episode e are offsets[e] … offsets[e + 1] - 1."""

    path: str
    details: dict  # JSON: names, left_out, fit, vocabulary, texts, cameras, image_keys, state_keys, action_key …
    # offsets (E + 1,), states (N, S), actions (N, A), texts (N,) codes; if some lack a camera, present (E, cameras)
    arrays: dict[str, np.ndarray]
    frames: Any  # ArrayFrames, FileFrames or lerobot.frames.ClipFrames; None without images
    folder: Path | None = None  # of the cache

    @property
    def fit(self) -> FrameFit | None:
        return FrameFit(**self.details["fit"]) if self.details["fit"] else None

    @property
    def first_file(self) -> str:
        return str(Path(self.path) / self.details["names"][0])

    @property
    def frames_shape(self) -> tuple[int, int, int, int]:
        """(N, 3, h, w) of each camera."""
        return int(self.arrays["offsets"][-1]), 3, self.fit.height, self.fit.width

    def lengths(self) -> np.ndarray:
        """(E,) steps of each episode."""
        return np.diff(self.arrays["offsets"])

    def image_bytes(self) -> int:
        return len(self.details["cameras"]) * int(np.prod(self.frames_shape)) if self.fit else 0

    def total_bytes(self) -> int:
        return self.image_bytes() + sum(array.nbytes for array in self.arrays.values())

    def text(self, kind: str, row: int) -> str:
        """The text at a row; empty if the folder has no texts of this kind."""
        return self.details["vocabulary"][self.arrays[kind][row]] if kind in self.arrays else ""

    # Another process opens the cache's files itself: pickling their content would copy it.
    def __getstate__(self) -> dict:
        return self.__dict__ if self.folder is None else {**self.__dict__, "arrays": None, "frames": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        if self.folder is not None:
            self.arrays, self.frames = open_arrays(self.folder, self.details)


def read_episodes(folder: Path, files: list[Path], config: Config, process) -> tuple[Keys | None, list[Episode], int]:
    """The keys of the files, their episodes, and how many mirrored ones were left out.

    Layout and dimensions are those of most files; the others are the ones that cannot be used.

    Raises:
        BadEpisodes: with a line for each file that cannot be used; all are read before it is raised.
    """
    own: dict[Path, tuple[Keys, Episode]] = {}
    left_out, problems = 0, {}
    for file in files:
        if len(own) == config.max_episodes:
            break
        try:
            with reading(file) as root:
                name = str(file.relative_to(folder)).lower()
                is_mirrored = "mirror" in name or any(map(root.attrs.get, MIRRORED_ATTRIBUTES))
                if process.skip_mirrored_data and is_mirrored:
                    left_out += 1
                    continue
                keys = resolve_keys(root, config, process.is_multimodal)
                own[file] = keys, read_episode(root, keys, config)
        except ValueError as error:
            problems[file] = str(error)
    keys = most_common([keys for keys, _ in own.values()])
    episodes: dict[Path, Episode] = {}
    for file, (its_keys, episode) in own.items():
        try:
            if its_keys != keys:
                with reading(file) as root:
                    episode = read_episode(root, keys, config)
            episodes[file] = episode
        except ValueError as error:
            problems[file] = str(error)
    usual = most_common([dimensions(episode) for episode in episodes.values()])
    first = next((episode for episode in episodes.values() if dimensions(episode) == usual), None)
    for file, episode in episodes.items():
        try:
            refuse_difference(first.file, vars(first), episode.file, vars(episode))
        except ValueError as error:
            problems[file] = str(error)
    if problems:
        raise BadEpisodes(folder, {file: problems[file] for file in files if file in problems})
    return keys, list(episodes.values()), left_out


def most_common(values: list) -> Any:
    """The value that most have, of equals the first; None of none."""
    return Counter(values).most_common(1)[0][0] if values else None


def dimensions(episode: Episode) -> tuple[int, int]:
    """Of actions and states."""
    return episode.actions.shape[1], episode.states.shape[1]


def scan(folder: Path, files: list[Path], config: Config, process) -> EpisodeSource:
    """Read and check everything but the frames, which stay in the files."""
    keys, episodes, left_out = read_episodes(folder, files, config, process)
    if not episodes:
        raise ValueError(f"{folder} holds {left_out} mirrored episodes and no other; set skip_mirrored_data: false")
    source = without_frames(folder, keys, episodes, config, process)
    source.details["left_out"] = left_out
    if source.fit is not None:
        offsets, image_keys = source.arrays["offsets"], source.details["image_keys"]
        present, files = source.arrays.get("present"), [Path(episode.file) for episode in episodes]
        source.frames = FileFrames(files, offsets, image_keys, source.fit, present)
    return source


def without_frames(folder: Path, keys: Keys, episodes: list[Episode], config: Config, process) -> EpisodeSource:
    """The source of these episodes; the caller adds the frames."""
    counts = Counter(camera for episode in episodes for camera in episode.frame_sizes)
    masked = config.missing_cameras == "mask"
    cameras = config.cameras or sorted(c for c, count in counts.items() if masked or count == len(episodes))
    cameras = [camera for camera in cameras if counts[camera]] if keys.images else []
    image_keys = [f"{keys.images}/{camera}" for camera in cameras]
    fit = common_fit(episodes, cameras, config, process.image_aspect_ratio)
    vocabulary, codes = encode_texts(episodes)
    text_counts = Counter(kind for episode in episodes for kind in episode.texts)
    arrays = {
        "offsets": np.cumsum([0] + [len(episode.actions) for episode in episodes]),
        "states": np.concatenate([episode.states for episode in episodes]),
        "actions": np.concatenate([episode.actions for episode in episodes]),
        **codes,
    }
    if any(counts[camera] < len(episodes) for camera in cameras):
        arrays["present"] = np.array([[camera in episode.frame_sizes for camera in cameras] for episode in episodes])
    names = [os.path.relpath(episode.file, folder) for episode in episodes]
    details = {
        "names": names,
        "left_out": 0,
        "fit": fit and vars(fit),
        "vocabulary": vocabulary,
        "texts": sorted(codes),
        "texts_incomplete": {kind: count for kind, count in text_counts.items() if count < len(episodes)},
        "texts_missing": {  # kind -> the first episode that has none of it
            kind: next(name for name, episode in zip(names, episodes, strict=True) if kind not in episode.texts)
            for kind in TEXTS
            if text_counts[kind] < len(episodes)
        },
        "cameras": cameras,
        "image_keys": image_keys,
        "cameras_left_out": {camera: count for camera, count in sorted(counts.items()) if camera not in cameras},
        "cameras_masked": {camera: counts[camera] for camera in cameras if counts[camera] < len(episodes)},
        "state_keys": list(keys.state),
        "action_key": keys.action,
    }
    return EpisodeSource(str(folder), details, arrays, None)


def refuse_difference(first_file: str, first: dict, other_file: str, other: dict) -> None:
    """Raise ValueError if `actions` or `states` of two episodes or folders differ in dimensions."""
    for signal in ("actions", "states"):
        dims = first[signal].shape[1], other[signal].shape[1]
        if dims[0] != dims[1]:
            differ = f"{dims[0]} dimensions in {first_file} but {dims[1]} in {other_file}"
            raise ValueError(f"{signal} have {differ}; name state_keys and action_key that agree")


def common_fit(episodes: list[Episode], cameras: list[str], config: Config, mode: str) -> FrameFit | None:
    """One training size for all cameras and episodes; without `image_size` the frames have to agree."""
    sizes = [
        (episode.frame_sizes[camera], episode.file, camera)
        for episode in episodes
        for camera in cameras
        if camera in episode.frame_sizes
    ]
    if not sizes:
        return None
    first, first_file, first_camera = sizes[0]
    for size, file, camera in sizes:
        if size != first and (mode == "keep" or config.image_size is None):
            differ = f"{first[0]}x{first[1]} in {first_file} ({first_camera}) but {size[0]}x{size[1]} in {file}"
            raise ValueError(
                f"frames are {differ} ({camera}); set dataset.image_size, and image_aspect_ratio to square or pad"
            )
    height, width = training_size(mode, config.image_size, first)
    return FrameFit(mode, int(height), int(width))


def encode_texts(episodes: list[Episode]) -> tuple[list[str], dict[str, np.ndarray]]:
    """Each different text once, and its number at every step (N,) for each kind of text there is."""
    numbers, codes = {"": 0}, {}
    for kind in TEXTS:
        if any(kind in episode.texts for episode in episodes):
            lines = [line for episode in episodes for line in episode.texts.get(kind, [""] * len(episode.actions))]
            codes[kind] = np.asarray([numbers.setdefault(line, len(numbers)) for line in lines], np.int32)
    return list(numbers), codes


def write(staging: Path, source: EpisodeSource) -> dict:
    """Fill a cache folder; returns its manifest."""
    cache.require_disk(staging, source.total_bytes(), source.path)
    for name, array in source.arrays.items():
        np.save(staging / f"{name}.npy", array)
    if source.frames is not None:
        targets = [staging / f"frames_{camera}.npy" for camera in range(len(source.details["cameras"]))]
        for target in targets:
            np.lib.format.open_memmap(target, "w+", np.uint8, source.frames_shape)
        source.frames.write_to(targets)
    return source.details


def open_arrays(prepared: Path, details: dict) -> tuple[dict[str, np.ndarray], ArrayFrames | None]:
    """Map the arrays and frames of a cache folder."""

    def mapped(name: str) -> np.ndarray:
        return np.asarray(np.load(prepared / f"{name}.npy", mmap_mode="r"))

    present = ["present"] * bool(details["cameras_masked"])
    arrays = {name: mapped(name) for name in ("offsets", "states", "actions", *present, *details["texts"])}
    cameras = range(len(details["cameras"]))
    return arrays, ArrayFrames([mapped(f"frames_{camera}") for camera in cameras]) if details["fit"] else None


def preload(source: EpisodeSource) -> EpisodeSource:
    """Copy the whole source into memory, at training size."""
    cache.require_memory(source.total_bytes())
    arrays, frames = {name: np.array(array) for name, array in source.arrays.items()}, source.frames
    if isinstance(frames, ArrayFrames):
        frames = ArrayFrames([np.array(array) for array in frames.arrays])
    elif frames is not None:
        targets = [np.empty(source.frames_shape, np.uint8) for _ in source.details["cameras"]]
        frames.write_to(targets)
        frames = ArrayFrames(targets)
    return EpisodeSource(source.path, source.details, arrays, frames)
