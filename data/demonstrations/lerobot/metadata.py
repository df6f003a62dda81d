"""The metadata of a LeRobot data set: its features, episodes and tasks, and where their values and frames are.

v3.0 keeps many episodes in a file and a table of them in `meta/episodes`; v2.x has one file per episode and
`meta/episodes.jsonl`.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from data.demonstrations.lerobot import INFO, episode_name, read_info
from data.strict_json import json_lines


@dataclass(frozen=True)
class Recorded:
    """One episode as the metadata have it; `videos`: feature -> (file, time of the episode's first frame in it)."""

    index: int
    length: int
    data: Path
    videos: dict[str, tuple[Path, float]]

    @property
    def name(self) -> str:
        return episode_name(self.index)


@dataclass(frozen=True)
class Feature:
    """A feature as `meta/info.json` describes it; `name` is the data set's own."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def is_image(self) -> bool:
        return self.dtype in ("image", "video")

    @property
    def is_signal(self) -> bool:
        return not self.is_image and self.dtype != "string"

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Metadata:
    """`features` by the names that `dataset.rename` gives them; texts of the tasks and subtasks by their number."""

    folder: Path
    fps: float
    features: dict[str, Feature]
    episodes: list[Recorded]
    tasks: dict[int, str]
    subtasks: dict[int, str]


def read_metadata(folder: Path, rename: dict[str, str]) -> Metadata:
    """Read `meta/`; raises ValueError if its files contradict each other, or `rename` names no feature."""
    info = read_info(folder)
    of_version = read_v3 if info["codebase_version"] == "v3.0" else read_v2
    try:
        features = renamed(folder, info["features"], rename)
        videos = [feature.name for feature in features.values() if feature.dtype == "video"]
        episodes = sorted(of_version(folder, info, videos), key=lambda episode: episode.index)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder}/meta does not describe features and episodes ({error}); copy it again") from None
    for name, found in (("total_episodes", len(episodes)), ("total_frames", sum(e.length for e in episodes))):
        if info[name] != found:
            differ = f"says {name} {info[name]} but meta/episodes has {found}"
            raise ValueError(f"{folder / INFO} {differ}; copy the data set again, or correct info.json")
    numbers = [episode.index for episode in episodes]
    if numbers != list(range(len(numbers))):
        raise ValueError(f"{folder}/meta/episodes has episodes {numbers[:5]} …, expected 0, 1, 2, …; copy it again")
    tasks, subtasks = (read_texts(folder, kind) for kind in ("task", "subtask"))
    return Metadata(folder, float(info["fps"]), features, episodes, tasks, subtasks)


def renamed(folder: Path, described: dict[str, dict], rename: dict[str, str]) -> dict[str, Feature]:
    if unknown := sorted(rename.keys() - described):
        known = ", ".join(sorted(described))
        raise ValueError(f"dataset.rename: {folder} has no feature `{unknown[0]}`; it has {known}")
    features: dict[str, Feature] = {}
    for name, entry in described.items():
        new = rename.get(name, name)
        if new in features:
            raise ValueError(f"dataset.rename: {features[new].name} and {name} of {folder} would both be `{new}`")
        features[new] = Feature(name, entry["dtype"], tuple(entry["shape"]))
    return features


def read_v3(folder: Path, info: dict[str, Any], videos: list[str]) -> Iterator[Recorded]:
    """The episodes of `meta/episodes/*/*.parquet`; columns of statistics are left out."""
    for file in sorted((folder / "meta/episodes").rglob("*.parquet")):
        columns = [name for name in column_names(file) if not name.startswith("stats/")]
        for row in read_table(file, columns).to_pylist():
            numbers = {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]}
            data = folder / info["data_path"].format(**numbers)
            length = row["length"]
            if (rows := row["dataset_to_index"] - row["dataset_from_index"]) != length:
                differ = f"has length {length} but {rows} rows from dataset_from_index to dataset_to_index"
                raise ValueError(f"{file}: episode {row['episode_index']} {differ}; copy it again")
            clips = {}
            for key in videos:
                numbers = {part: row[f"videos/{key}/{part}"] for part in ("chunk_index", "file_index")}
                path = folder / info["video_path"].format(video_key=key, **numbers)
                clips[key] = path, float(row[f"videos/{key}/from_timestamp"])
            yield Recorded(row["episode_index"], length, data, clips)


def read_v2(folder: Path, info: dict[str, Any], videos: list[str]) -> Iterator[Recorded]:
    for row in read_lines(folder / "meta/episodes.jsonl"):
        index = row["episode_index"]
        numbers = {"episode_chunk": index // info["chunks_size"], "episode_index": index}
        clips = {key: (folder / info["video_path"].format(video_key=key, **numbers), 0.0) for key in videos}
        yield Recorded(index, row["length"], folder / info["data_path"].format(**numbers), clips)


def read_texts(folder: Path, kind: str) -> dict[int, str]:
    """The texts of `meta/tasks` or `meta/subtasks` by their number; {} without such a file."""
    table, lines = folder / f"meta/{kind}s.parquet", folder / f"meta/{kind}s.jsonl"
    if table.exists():
        rows = read_table(table)
        number = f"{kind}_index"
        text = next(field.name for field in rows.schema if field.name != number)  # pandas' index; its name varies
        return dict(zip(rows[number].to_pylist(), rows[text].to_pylist(), strict=True))
    return {row[f"{kind}_index"]: row[kind] for row in read_lines(lines)} if lines.exists() else {}


def read_lines(file: Path) -> list[dict[str, Any]]:
    try:
        with file.open("rb") as stream:
            return [row for _, row in json_lines(file, stream)]
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}); copy the data set again") from None


def column_names(file: Path) -> list[str]:
    with opened(file) as table:
        return table.schema_arrow.names


def read_table(file: Path, columns: list[str] | None = None) -> pyarrow.Table:
    """Columns of a Parquet file."""
    with opened(file) as table:
        return table.read(columns)


@contextlib.contextmanager
def opened(file: Path) -> Iterator[pyarrow.parquet.ParquetFile]:
    """A Parquet file; ValueError if it cannot be opened or read."""
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            yield table
    except FileNotFoundError:
        raise ValueError(f"{file}, which meta/ names, does not exist; copy the data set again, whole") from None
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{file} cannot be read ({one_line(error)}); copy it again") from None


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def camera_name(feature: str) -> str:
    """`top` for observation.images.top, `image` for observation.image: how `dataset.cameras` names a feature."""
    return re.sub(r"^observations?[./](images?[./])?", "", feature)
