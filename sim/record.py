"""Record demonstrations of a scripted expert, one HDF5 file per episode in ACT's layout.

    episode_0.hdf5   /action (T, 14) float64, /observations/qpos (T, 14) …; action[t] is stored with the
                     observation before it; attributes sim, seed, success, strict_success, task and
                     discarded_attempts, the failures before this success
    recording.json   the settings that all episodes share, and the counts

An episode depends only on the settings, the seed and its index, not on the number of workers or an interruption of
the recording. Shapes: T control steps.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import re
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from sim.contract import simulator
from sim.workers import progress, run
from storage.atomic import sync, sync_folder, write_json

MOST_ATTEMPTS = 50
EPISODE = re.compile(r"episode_\d+\.hdf5")


@dataclasses.dataclass
class RecordReport:
    kept: int  # episodes in the folder now
    discarded: int  # attempts, over all these episodes, that missed the strict criterion
    recorded: int  # episodes that were missing and are recorded now
    seconds: float


def record(
    config: Any,
    directory: Path,
    num_episodes: int,
    seed: int,
    num_workers: int | None = None,
    jitter: float = 1.0,
    report: Callable[[str], None] = print,
) -> RecordReport:
    """Record those of the episodes 0 … num_episodes - 1 that `directory` lacks; others are kept.

    Failed attempts are discarded, counted, and repeated from another start.

    Args:
        num_workers: None takes a process for each core, 0 records in this process.
        jitter: Scales the random variation of the expert's waypoints; 0 for none.

    Raises:
        ValueError: The simulator is missing, or the folder cannot be written or holds
            episodes of other settings or unknown origin.
    """
    began = time.monotonic()
    simulator(config).make(config)  # a missing package is reported before the folder is made
    settings = {"config": dataclasses.asdict(config), "seed": seed, "jitter": jitter}
    _open_folder(directory, config, settings)
    packages = simulator(config).PACKAGES
    missing = [i for i in range(num_episodes) if not (directory / f"episode_{i}.hdf5").exists()]
    if missing:
        _write_recording(directory, settings, num_episodes, packages)
    start = functools.partial(_recorder, config, directory, seed, jitter)
    with contextlib.closing(run(start, missing, num_workers)) as results:
        for _ in progress(results, len(missing), "recorded", report):
            pass
    kept, discarded = _write_recording(directory, settings, num_episodes, packages) if missing else _count(directory)
    return RecordReport(kept, discarded, len(missing), time.monotonic() - began)


@dataclasses.dataclass
class Recorded:
    kept: int  # whole episodes in the folder
    wanted: int  # episodes that the last recording was to hold: more than `kept` if it was interrupted
    seed: int
    jitter: float


def recorded(config: Any, directory: Path) -> Recorded | None:
    """What a folder holds, read without the simulator; None if nothing was recorded into it.

    Raises:
        ValueError: it was recorded with another config.
    """
    stored = _stored(directory)
    if stored is None:
        return None
    settings = stored["settings"]
    _refuse_other_settings(directory, config, settings, {"config": dataclasses.asdict(config)})
    return Recorded(len(_episodes(directory)), stored["wanted"], settings["seed"], settings["jitter"])


def _recorder(config: Any, directory: Path, seed: int, jitter: float) -> Callable[[int], None]:
    """The function of one worker: it records the episode of an index."""
    room = simulator(config)
    environment = room.make(config)

    def record_episode(index: int) -> None:
        for attempt in range(MOST_ATTEMPTS):
            start = int(np.random.SeedSequence([seed, index, attempt]).generate_state(1)[0])
            start += (index - start) % environment.variants  # the episodes of a recording take the tasks in turn
            episode = room.demonstrate(environment, start, jitter)
            if environment.kept:
                attributes = {"sim": True, "success": True, "strict_success": environment.strict_success}
                attributes |= {"task": environment.task, "seed": start, "discarded_attempts": attempt}
                if environment.instruction is not None:
                    attributes["instruction"] = environment.instruction
                write_episode(directory / f"episode_{index}.hdf5", episode, attributes)
                return
        raise ValueError(
            f"{directory}: {MOST_ATTEMPTS} attempts at episode {index} failed; use a jitter below {jitter:g} "
            f"or more than {config.episode_steps} episode_steps"
        )

    return record_episode


def write_episode(path: Path, episode: dict[str, np.ndarray], attributes: dict) -> None:
    """Write a file that readers see complete or not at all, also if this process is killed."""
    import h5py

    temporary = path.with_name(f".{path.name}.tmp")  # of an interrupted recording: written again
    with h5py.File(temporary, "w") as file:
        file.attrs.update(attributes)
        for key, values in episode.items():
            # A frame per chunk, so that reading one step decompresses one frame.
            frames = {"chunks": (1, *values.shape[1:]), "compression": "lzf"} if values.ndim == 4 else {}
            texts = {"dtype": h5py.string_dtype()} if values.dtype.kind == "U" else {}
            file.create_dataset(key, data=values.astype(object) if texts else values, **frames, **texts)
    sync(temporary)
    os.replace(temporary, path)
    sync_folder(path.parent)


def _open_folder(directory: Path, config: Any, settings: dict) -> None:
    """Create the folder, or check that its content was recorded with these settings."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot record into {directory}: {error.strerror}; choose another folder") from None
    stored = _stored(directory)
    if stored is not None:
        _refuse_other_settings(directory, config, stored["settings"], settings)
    elif _episodes(directory):
        raise ValueError(f"{directory} holds episodes but no recording.json: record into another folder")


def _stored(directory: Path) -> dict | None:
    """The content of recording.json; None without this file."""
    path = directory / "recording.json"
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        content["wanted"], content["settings"]["config"], content["settings"]["seed"], content["settings"]["jitter"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a recording's settings ({error!r}): use another folder") from None
    return content


def _refuse_other_settings(directory: Path, config: Any, stored: dict, settings: dict) -> None:
    stored, settings = ({**values["config"], **values} for values in (stored, settings))
    # A key that did not exist yet had the effect of its default.
    stored = {each.name: each.default for each in dataclasses.fields(config)} | stored
    for key, value in settings.items():
        if key != "config" and stored.get(key) != value:
            raise ValueError(
                f"{directory} was recorded with {key} {stored.get(key)!r}, not {value!r}: record into another folder"
            )


def _write_recording(directory: Path, settings: dict, wanted: int, packages: tuple[str, ...]) -> tuple[int, int]:
    """Write recording.json and return its counts (kept, discarded)."""
    kept, discarded = _count(directory)
    versions = {package: metadata.version(package) for package in packages}
    content = {"settings": settings, "wanted": wanted, "kept": kept, "discarded": discarded, "versions": versions}
    write_json(directory / "recording.json", content)
    return kept, discarded


def _episodes(directory: Path) -> list[Path]:
    return [directory / name for name in os.listdir(directory) if EPISODE.fullmatch(name)]


def _count(directory: Path) -> tuple[int, int]:
    """Episodes in the folder, and the attempts that failed before them."""
    import h5py

    discarded, paths = 0, _episodes(directory)
    for path in paths:
        try:
            with h5py.File(path, "r") as file:
                discarded += int(file.attrs["discarded_attempts"])
        except (OSError, KeyError) as error:
            raise ValueError(f"{path} is not an episode recorded here ({error}): move it out of this folder") from None
    return len(paths), discarded
