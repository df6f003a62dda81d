"""Open a folder of demonstrations: from the cache, from memory, or from its files."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from data import cache, hub
from data.demonstrations import lerobot
from data.demonstrations.config import SUFFIXES, Config, included
from data.demonstrations.hdf5 import add_sources
from data.demonstrations.source import EpisodeSource, open_arrays, preload, scan, write

CACHE_VERSION = 4
OF_LEROBOT = ["exclude", "rename", "timestamp_tolerance_s"]  # keys that matter to a LeRobot data set's content


def prepare_all(config: Config, process: Any, cache_root: Path) -> list[EpisodeSource]:
    """The sources of all folders; in a mixture, `rename` may name features that only some of them have."""
    folders = {path: Path(path).expanduser() for path in config.paths()}
    for path in filter(hub.is_hub_id, folders if config.layout == "lerobot" else ()):
        folders[path] = hub.downloaded(path, "dataset.path", process.cache_dir)
    if len(folders) == 1:
        return [prepare(path, folder, config, process, cache_root) for path, folder in folders.items()]
    of_lerobot = [path for path, folder in folders.items() if lerobot.is_lerobot(folder, config.layout)]
    features = {path: lerobot.read_info(folders[path])["features"] for path in of_lerobot}
    if unknown := sorted(config.rename.keys() - set().union(*features.values())):
        raise ValueError(f"dataset.rename: no folder of dataset.path has a feature `{unknown[0]}`; correct its name")
    sources = []
    for path, folder in folders.items():
        rename = {name: new for name, new in config.rename.items() if name in features.get(path, ())}
        own = dataclasses.replace(config, rename=rename)
        sources.append(prepare(path, folder, own, process, cache_root))
    return sources


def prepare(path: str, folder: Path, config: Config, process: Any, cache_root: Path) -> EpisodeSource:
    """The source of one folder: cached, with `lazy_preprocess` from the files, with `preload_data` in memory."""
    # Listed once: a recording in progress must not add a file after the key is computed.
    if lerobot.is_lerobot(folder, config.layout):
        lerobot.require_pyarrow()
        from data.demonstrations.lerobot.scan import files_of, scan_lerobot

        files, read, others = files_of(folder), scan_lerobot, OF_LEROBOT
    else:
        files, read, others = included(folder, config.exclude), scan, []
        if not files:
            raise ValueError(f"dataset.exclude leaves no episode of {path}; leave a pattern out")
    if process.lazy_preprocess:
        source = read(folder, files, config, process)
    else:
        key = cache.key_of({**settings(config, process, others), "files": identities(folder, files)})
        prepared, details = cache.open_or_build(
            cache_root, key, lambda staging: write(staging, read(folder, files, config, process))
        )
        source = EpisodeSource(str(folder), details, *open_arrays(prepared, details), prepared)
    source.path = path
    return preload(source) if process.preload_data else source


def identities(folder: Path, files: list[Path]) -> list[dict]:
    """The identity of each file, and of each other file that HDF5 follows from one of them."""
    sources: set[Path] = set()
    for file in files:
        if file.name.endswith(SUFFIXES):
            add_sources(file, sources)
    return [cache.file_identity(file, os.path.relpath(file, folder)) for file in [*files, *sorted(sources)]]


def settings(config: Config, process: Any, others: list[str]) -> dict:
    """All settings that affect the prepared content."""
    config_keys = ["layout", "control", "state_keys", "action_key", "max_episodes", *others]
    process_keys = ["skip_mirrored_data", "is_multimodal"]
    if process.is_multimodal and config.cameras != []:
        config_keys += ["cameras", "missing_cameras", "image_size"]
        process_keys += ["image_aspect_ratio"]
    values = {key: getattr(config, key) for key in config_keys} | {key: getattr(process, key) for key in process_keys}
    return {"version": CACHE_VERSION, **values}
