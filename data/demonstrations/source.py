"""All episodes of one folder, ready to be sampled: from a cache on disk, in memory, or from the files.

Shapes: E episodes, N steps of all of them, S state and A action dimensions, h and w in training.
"""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data import cache
from data.demonstrations.config import Config, episode_files
from data.demonstrations.frames import ArrayFrames, FileFrames, write_all
from data.demonstrations.hdf5 import add_sources, reading
from data.demonstrations.images import FrameFit, training_size
from data.demonstrations.layouts import Episode, is_mirrored, read_episode, resolve_keys

CACHE_VERSION = 2
TEXTS = ("instruction", "reasoning", "subtask")


@dataclass
class EpisodeSource:
    """Steps of all episodes of a folder; episode e has the rows from offsets[e] to before offsets[e + 1]."""

    path: str
    details: dict  # JSON: names, left_out, keys, image_keys, cameras, fit, vocabulary
    arrays: dict[str, np.ndarray]  # offsets (E + 1,), states (N, S), actions (N, A), texts (N,) codes
    frames: ArrayFrames | FileFrames | None
    folder: Path | None = field(default=None)  # of the cache

    @property
    def fit(self) -> FrameFit | None:
        return FrameFit(**self.details["fit"]) if self.details["fit"] else None

    @property
    def first_file(self) -> str:
        return str(Path(self.path) / self.details["names"][0])

    def lengths(self) -> np.ndarray:
        """(E,) steps of each episode."""
        return np.diff(self.arrays["offsets"])

    def image_bytes(self) -> int:
        fit, cameras = self.fit, self.details["cameras"]
        return 3 * fit.height * fit.width * len(cameras) * int(self.arrays["offsets"][-1]) if fit else 0

    def text(self, kind: str, row: int) -> str:
        """Empty where the folder records no such text."""
        return self.details["vocabulary"][self.arrays[kind][row]] if kind in self.arrays else ""

    # A process that gets a copy opens the files again: sending their content would multiply it.
    def __getstate__(self) -> dict:
        return self.__dict__ if self.folder is None else {**self.__dict__, "arrays": None, "frames": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        if self.folder is not None:
            self.arrays, self.frames = open_arrays(self.folder, self.details)


def prepare(path: str, config: Config, process, cache_root: Path) -> EpisodeSource:
    """The source of one folder, in the way `lazy_preprocess` and `preload_data` ask for."""
    folder = Path(path).expanduser()
    files = episode_files(folder)  # listed once: a recording in progress must not add a file after the key is computed
    if process.lazy_preprocess:
        source = from_files(path, folder, files, config, process)
    else:
        key = cache.key_of({**settings(config, process), "files": identities(folder, files)})
        prepared, details = cache.open_or_build(
            cache_root, key, lambda staging: write(staging, folder, files, config, process)
        )
        source = EpisodeSource(path, details, *open_arrays(prepared, details), prepared)
    return preload(source) if process.preload_data else source


def identities(folder: Path, files: list[Path]) -> list[dict]:
    """The identity of each episode file, and of each other file that HDF5 follows from one of them."""
    sources: set[Path] = set()
    for file in files:
        add_sources(file, sources)
    return [cache.file_identity(file, os.path.relpath(file, folder)) for file in [*files, *sorted(sources)]]


def settings(config: Config, process) -> dict:
    """All that decides the prepared content, besides the files."""
    wanted = {
        "version": CACHE_VERSION,
        "layout": config.layout,
        "control": config.control,
        "state_keys": config.state_keys,
        "action_key": config.action_key,
        "max_episodes": config.max_episodes,
        "skip_mirrored_data": process.skip_mirrored_data,
        "is_multimodal": process.is_multimodal,
    }
    if process.is_multimodal and config.cameras != []:
        wanted |= {
            "cameras": config.cameras,
            "image_size": config.image_size,
            "image_aspect_ratio": process.image_aspect_ratio,
        }
    return wanted


def scan(folder: Path, files: list[Path], config: Config, process) -> tuple[dict, dict[str, np.ndarray]]:
    """Read and check everything but the frames; -> details and arrays of a `EpisodeSource`."""
    keys, episodes, left_out = None, [], 0
    for file in files:
        if config.max_episodes is not None and len(episodes) == config.max_episodes:
            break
        with reading(file) as root:
            if process.skip_mirrored_data and is_mirrored(root, str(file.relative_to(folder))):
                left_out += 1
                continue
            keys = keys or resolve_keys(root, config, process.is_multimodal)
            episodes.append(read_episode(root, keys, config.cameras))
            refuse_difference(episodes[0], episodes[-1])
    if not episodes:
        raise ValueError(f"{folder} holds {left_out} mirrored episodes and no other; set skip_mirrored_data: false")
    counts = Counter(camera for episode in episodes for camera in episode.frame_sizes)
    cameras = config.cameras or sorted(camera for camera, count in counts.items() if count == len(episodes))
    cameras = cameras if keys.images else []
    fit = common_fit(episodes, cameras, config, process.image_aspect_ratio)
    vocabulary, codes = encode_texts(episodes)
    offsets = np.cumsum([0] + [len(episode.actions) for episode in episodes])
    arrays = {
        "offsets": offsets,
        "states": np.concatenate([episode.states for episode in episodes]),
        "actions": np.concatenate([episode.actions for episode in episodes]),
        **codes,
    }
    details = {
        "names": [os.path.relpath(episode.file, folder) for episode in episodes],
        "left_out": left_out,
        "fit": fit and vars(fit),
        "vocabulary": vocabulary,
        "texts": sorted(codes),
        "cameras": cameras,
        "image_keys": [f"{keys.images}/{camera}" for camera in cameras],
        "cameras_left_out": {camera: count for camera, count in sorted(counts.items()) if camera not in cameras},
        "state_keys": list(keys.state),
        "action_key": keys.action,
    }
    return details, arrays


def refuse_difference(first: Episode, other: Episode) -> None:
    for signal in ("actions", "states"):
        dims = [getattr(episode, signal).shape[1] for episode in (first, other)]
        if dims[0] != dims[1]:
            raise ValueError(
                f"{signal} have {dims[0]} dimensions in {first.file} but {dims[1]} in {other.file}; train "
                f"on one kind of robot, or name state_keys and action_key that agree"
            )


def common_fit(episodes: list[Episode], cameras: list[str], config: Config, mode: str) -> FrameFit | None:
    """One training size for all cameras and episodes.

    Without `image_size` it follows from the frames, which then have to agree.
    """
    first = None
    for episode in episodes:
        for camera in cameras:
            size = episode.frame_sizes[camera]
            first = first or (episode.file, camera, size)
            if size != first[2] and (mode == "keep" or config.image_size is None):
                raise ValueError(
                    f"frames are {first[2][0]}x{first[2][1]} in {first[0]} ({first[1]}) but {size[0]}x"
                    f"{size[1]} in {episode.file} ({camera}); set dataset.image_size, and "
                    f"image_aspect_ratio to square or pad"
                )
    if first is None:
        return None
    height, width = training_size(mode, config.image_size, first[2])
    return FrameFit(mode, int(height), int(width))


def encode_texts(episodes: list[Episode]) -> tuple[list[str], dict[str, np.ndarray]]:
    """Each different text once, and its number at every step (N,) for each kind of text there is."""
    numbers, codes = {"": 0}, {}
    for kind in TEXTS:
        if any(kind in episode.texts for episode in episodes):
            lines = [line for episode in episodes for line in episode.texts.get(kind, [""] * len(episode.actions))]
            codes[kind] = np.asarray([numbers.setdefault(line, len(numbers)) for line in lines], np.int32)
    return list(numbers), codes


def from_files(path: str, folder: Path, files: list[Path], config: Config, process) -> EpisodeSource:
    """Signals in memory, since their statistics need all of them; frames left in the files."""
    details, arrays = scan(folder, files, config, process)
    source = EpisodeSource(path, details, arrays, None)
    if source.fit is not None:
        source.frames = FileFrames(files_of(folder, details), arrays["offsets"], details["image_keys"], source.fit)
    return source


def write(staging: Path, folder: Path, files: list[Path], config: Config, process) -> dict:
    """Fill a cache folder; returns its manifest."""
    details, arrays = scan(folder, files, config, process)
    source = EpisodeSource(str(folder), details, arrays, None)
    cache.require_disk(staging, source.image_bytes() + sum(array.nbytes for array in arrays.values()), str(folder))
    for name, array in arrays.items():
        np.save(staging / f"{name}.npy", array)
    if source.fit is not None:
        targets = [staging / f"frames_{camera}.npy" for camera in range(len(details["cameras"]))]
        for target in targets:
            np.lib.format.open_memmap(target, "w+", np.uint8, frames_shape(source))
        write_all(files_of(folder, details), arrays["offsets"], details["image_keys"], targets, source.fit)
    return details


def open_arrays(prepared: Path, details: dict) -> tuple[dict[str, np.ndarray], ArrayFrames | None]:
    def mapped(name: str) -> np.ndarray:
        return np.asarray(np.load(prepared / f"{name}.npy", mmap_mode="r"))

    arrays = {name: mapped(name) for name in ("offsets", "states", "actions", *details["texts"])}
    cameras = range(len(details["cameras"]))
    return arrays, ArrayFrames([mapped(f"frames_{camera}") for camera in cameras]) if details["fit"] else None


def preload(source: EpisodeSource) -> EpisodeSource:
    """The whole source in memory, at training size."""
    cache.require_memory(source.image_bytes() + sum(array.nbytes for array in source.arrays.values()))
    source.arrays = {name: np.array(array) for name, array in source.arrays.items()}
    if isinstance(source.frames, ArrayFrames):
        source.frames = ArrayFrames([np.array(array) for array in source.frames.arrays])
    elif source.frames is not None:
        lazy = source.frames
        targets = [np.empty(frames_shape(source), np.uint8) for _ in lazy.keys]
        write_all(lazy.files, lazy.offsets, lazy.keys, targets, lazy.fit)
        source.frames = ArrayFrames(targets)
    return source


def frames_shape(source: EpisodeSource) -> tuple[int, int, int, int]:
    """(N, 3, h, w)."""
    return int(source.arrays["offsets"][-1]), 3, source.fit.height, source.fit.width


def files_of(folder: Path, details: dict) -> list[Path]:
    return [folder / name for name in details["names"]]
