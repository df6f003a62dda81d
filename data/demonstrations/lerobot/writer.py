"""Write LeRobot data sets of codebase version v3.0: Parquet, MP4 and metadata.

Shapes: T steps of an episode, D dimensions of a signal, H and W of a frame.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from data.demonstrations.lerobot.statistics import PixelCounts, of_values
from data.demonstrations.lerobot.video import library
from storage.atomic import write_json
from storage.worker_pool import environment_variables

VERSION = "v3.0"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-000/file-000.parquet"
CHUNK_FILES, DATA_MEGABYTES, VIDEO_MEGABYTES = 1000, 100, 200  # limits of a folder and of a file
PIXEL_FORMAT = "yuv420p"


@dataclass(frozen=True)
class Encoding:
    """How frames are compressed; `crf` is the codec's own scale, less is better."""

    codec: str = "libsvtav1"
    crf: int = 30


@dataclass(frozen=True)
class EpisodeContent:
    """One episode to write; every entry has T steps.

    Attributes:
        signals: feature -> (T, D) float32.
        tasks: the task's text at each step.
        texts: feature -> a text for each step.
        frames: feature -> frames (H, W, 3) uint8 RGB.
    """

    signals: dict[str, np.ndarray]
    tasks: list[str]
    texts: dict[str, list[str]]
    frames: dict[str, Iterable[np.ndarray]]


def place(number: int) -> dict[str, int]:
    """Chunk and file index of the file with this number."""
    return {"chunk_index": number // CHUNK_FILES, "file_index": number % CHUNK_FILES}


def is_full(file: Path, megabytes: int) -> bool:
    return file.exists() and os.path.getsize(file) >= megabytes * 2**20


class VideoWriter:
    """The videos of one camera; an episode is never divided between two files."""

    def __init__(self, folder: Path, key: str, fps: float, encoding: Encoding):
        self.folder, self.key, self.fps, self.encoding = folder, key, Fraction(fps).limit_denominator(10**6), encoding
        self.number, self.container, self.size = -1, None, None
        self.counts = PixelCounts()

    def add(self, frames: Iterable[np.ndarray]) -> tuple[int, float, PixelCounts]:
        """Append an episode; returns the number of its file, its first frame's time in it in seconds, its pixels."""
        counts = PixelCounts()
        for frame in frames:
            if counts.frames == 0 and (self.container is None or is_full(self.path, VIDEO_MEGABYTES)):
                self.open(frame.shape[:2])
            if counts.frames == 0:
                first = self.written
            self.encode(frame)
            counts.add(frame)
        self.counts.merge(counts)
        # Of whole frames: sums of durations would drift away from the frames.
        return self.number, float(first / self.fps), counts

    def open(self, size: tuple[int, int]) -> None:
        """Begin the next file."""
        self.close()
        if size[0] % 2 or size[1] % 2:
            raise ValueError(f"{self.key}: frames of {size[0]}x{size[1]}; {PIXEL_FORMAT} needs even sides")
        self.number, self.written, self.size = self.number + 1, 0, size
        self.path = self.folder / VIDEO_PATH.format(video_key=self.key, **place(self.number))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.encoding.codec not in library().codecs_available:
            raise ValueError(f"this installation of PyAV has no encoder {self.encoding.codec}; choose another --vcodec")
        self.container = library().open(str(self.path), "w")
        options = {"g": "2", "crf": str(self.encoding.crf)}  # a key frame every 2: frames are read in any order
        self.stream = self.container.add_stream(self.encoding.codec, self.fps, options=options)
        self.stream.pix_fmt = PIXEL_FORMAT
        self.stream.height, self.stream.width = size
        with environment_variables({"SVT_LOG": "1"}):  # SVT-AV1 describes itself on stderr otherwise
            self.stream.codec_context.open()

    def encode(self, frame: np.ndarray) -> None:
        if frame.shape[:2] != self.size:
            raise ValueError(f"{self.key}: frames of {self.size} and {frame.shape[:2]}; a camera has one size")
        picture = library().VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture.pts, picture.time_base = self.written, 1 / self.fps
        self.written += 1
        self.container.mux(self.stream.encode(picture))

    def close(self) -> None:
        if self.container is not None:
            self.container.mux(self.stream.encode(None))
            self.container.close()
            self.container = None

    def feature(self) -> dict[str, Any]:
        """The entry in info.json."""
        height, width = self.size
        with library().open(str(self.path)) as container:
            codec = container.streams.video[0].codec.canonical_name
        info = {"height": height, "width": width, "codec": codec, "pix_fmt": PIXEL_FORMAT, "is_depth_map": False}
        info |= {"fps": plain(self.fps), "channels": 3}
        names = ["height", "width", "channels"]
        named = {f"video.{name}": value for name, value in info.items()}
        return {"dtype": "video", "shape": [height, width, 3], "names": names, "info": named | {"has_audio": False}}


def plain(fps: float | Fraction) -> int | float:
    return int(fps) if fps == int(fps) else float(fps)


class DatasetWriter:
    """Writes episodes one after the other into a folder, which is complete after `close`."""

    def __init__(self, folder: Path, fps: float, robot_type: str | None, encoding: Encoding):
        self.folder, self.fps, self.robot_type, self.encoding = folder, fps, robot_type, encoding
        self.videos: dict[str, VideoWriter] = {}
        self.tasks: dict[str, int] = {}
        self.episodes: list[dict[str, Any]] = []
        self.values: dict[str, list[np.ndarray]] = {}  # of all episodes, for their statistics
        self.features: dict[str, dict[str, Any]] = {}
        self.frames, self.number, self.writer = 0, -1, None

    def add(self, episode: EpisodeContent) -> None:
        """Append an episode; all must have the same features."""
        length, index = len(episode.tasks), len(self.episodes)
        signals = dict(episode.signals) | {
            "timestamp": (np.arange(length) / self.fps).astype(np.float32)[:, None],
            "frame_index": np.arange(length)[:, None],
            "episode_index": np.full((length, 1), index),
            "index": self.frames + np.arange(length)[:, None],
            "task_index": np.array([[self.tasks.setdefault(task, len(self.tasks))] for task in episode.tasks]),
        }
        features = {name: describe(values) for name, values in signals.items()}
        features |= {name: {"dtype": "string", "shape": [1], "names": None} for name in episode.texts}
        self.features = self.features or features
        if features != self.features:
            other = next(k for k in features.keys() | self.features if features.get(k) != self.features.get(k))
            raise ValueError(f"episode {index} has `{other}` {features.get(other)}, others {self.features.get(other)}")
        if self.episodes and episode.frames.keys() != self.videos.keys():
            key = min(episode.frames.keys() ^ self.videos.keys())
            where, remedy = "not in" if key in self.videos else "in", "write others, by --set dataset.cameras=[…]"
            raise ValueError(f"`{key}` is not in all episodes: {where} episode {index}; {remedy}")
        row = {"episode_index": index, "tasks": [*dict.fromkeys(episode.tasks)], "length": length}
        row |= {f"data/{name}": value for name, value in self.write_table(signals, episode.texts).items()}
        row |= {"dataset_from_index": self.frames, "dataset_to_index": self.frames + length}
        row |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        statistics = {name: of_values(values) for name, values in signals.items()}
        for key, frames in episode.frames.items():
            video = self.videos.setdefault(key, VideoWriter(self.folder, key, self.fps, self.encoding))
            number, start, counts = video.add(frames)
            if counts.frames != length:
                raise ValueError(f"episode {index} has {counts.frames} frames of {key} but {length} steps")
            at = {**place(number), "from_timestamp": start, "to_timestamp": start + length / self.fps}
            row |= {f"videos/{key}/{name}": value for name, value in at.items()}
            statistics[key] = counts.statistics()
        for name, values in signals.items():
            self.values.setdefault(name, []).append(values)
        row |= {f"stats/{name}/{kind}": v for name, kinds in statistics.items() for kind, v in kinds.items()}
        self.episodes.append(row)
        self.frames += length

    def write_table(self, signals: dict[str, np.ndarray], texts: dict[str, list[str]]) -> dict[str, int]:
        """Append a row group; returns the place of its file."""
        columns = {name: column(values) for name, values in signals.items()}
        table = pyarrow.table(columns | {name: pyarrow.array(lines, pyarrow.string()) for name, lines in texts.items()})
        if self.writer is None or is_full(self.path, DATA_MEGABYTES):
            self.close_table()
            self.number += 1
            self.path = self.folder / DATA_PATH.format(**place(self.number))
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.writer = pyarrow.parquet.ParquetWriter(self.path, table.schema)
        self.writer.write_table(table, row_group_size=len(table))
        return place(self.number)

    def close_table(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    def close(self) -> None:
        """Finish all files and write the metadata."""
        self.close_table()
        for video in self.videos.values():
            video.close()
        statistics = {name: of_values(np.concatenate(values)) for name, values in self.values.items()}
        statistics |= {key: video.counts.statistics() for key, video in self.videos.items()}
        write_json(self.folder / "meta/stats.json", statistics)
        path = self.folder / EPISODES_PATH
        path.parent.mkdir(parents=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(self.episodes), path)
        pyarrow.parquet.write_table(tasks_table(list(self.tasks)), self.folder / "meta/tasks.parquet")
        write_json(self.folder / "meta/info.json", self.info())

    def info(self) -> dict[str, Any]:
        return {
            "codebase_version": VERSION,
            "robot_type": self.robot_type,
            "total_episodes": len(self.episodes),
            "total_frames": self.frames,
            "total_tasks": len(self.tasks),
            "chunks_size": CHUNK_FILES,
            "data_files_size_in_mb": DATA_MEGABYTES,
            "video_files_size_in_mb": VIDEO_MEGABYTES,
            "fps": plain(self.fps),
            "splits": {"train": f"0:{len(self.episodes)}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if self.videos else None,
            "features": {**{key: video.feature() for key, video in self.videos.items()}, **self.features},
        }


def describe(values: np.ndarray) -> dict[str, Any]:
    """The entry of a signal (T, D) in info.json."""
    return {"dtype": str(values.dtype), "shape": [values.shape[1]], "names": None}


def column(values: np.ndarray) -> pyarrow.Array:
    """A column of a signal (T, D): numbers if D is 1, else lists of D numbers."""
    flat = pyarrow.array(np.ascontiguousarray(values).ravel())
    return flat if values.shape[1] == 1 else pyarrow.FixedSizeListArray.from_arrays(flat, values.shape[1])


def tasks_table(tasks: list[str]) -> pyarrow.Table:
    """The tasks as pandas stores a frame whose index is the text and whose column is the number."""
    index = "__index_level_0__"
    columns = [
        {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"},
        {"name": None, "field_name": index, "pandas_type": "unicode", "numpy_type": "object"},
    ]
    described = {"index_columns": [index], "column_indexes": [], "columns": [{**c, "metadata": None} for c in columns]}
    table = pyarrow.table({"task_index": pyarrow.array(range(len(tasks)), pyarrow.int64()), index: tasks})
    return table.replace_schema_metadata({"pandas": json.dumps({**described, "pandas_version": "2.0.0"})})
