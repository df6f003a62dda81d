"""Frames of LeRobot's videos: which one belongs to a step, and their decoding.

Shapes: T steps of an episode, H and W as recorded, h and w in training.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from data.demonstrations.lerobot.metadata import Recorded, one_line


@dataclass(frozen=True)
class Times:
    """The frames of a video: their size (H, W), presentation times `pts` in ascending order, seconds per unit."""

    file: Path
    size: tuple[int, int]
    pts: np.ndarray  # int64
    unit: float

    @property
    def seconds(self) -> np.ndarray:
        return self.pts * self.unit


@functools.lru_cache(maxsize=4096)
def times_of(file: Path, modified_ns: int) -> Times:
    """The times of a video's frames, read once without decoding them: a file has many episodes."""
    with opened_video(file) as container:
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise ValueError(f"{file}: this installation of PyAV has no decoder for its codec; pip install -U av")
        pts = [packet.pts for packet in container.demux(stream) if packet.pts is not None]
        size = stream.codec_context.height, stream.codec_context.width
        return Times(file, size, np.sort(np.asarray(pts, np.int64)), float(stream.time_base))


def frames_of_episode(times: Times, episode: Recorded, start: float, at: np.ndarray, tolerance: float) -> np.ndarray:
    """The presentation times (T,) of the frames of an episode that begins at `start` and whose steps are `at` (T,).

    Raises:
        ValueError: a step has no frame within the tolerance; the first such step is named. All times in seconds.
    """
    wanted, seconds = start + at.astype(np.float64), times.seconds
    if not len(seconds):
        raise ValueError(f"{times.file} has no frame; copy it again, or exclude [{episode.name}]")
    after = np.searchsorted(seconds, wanted).clip(max=len(seconds) - 1)
    before = (after - 1).clip(min=0)
    nearest = np.where(wanted - seconds[before] <= seconds[after] - wanted, before, after)
    distance = np.abs(seconds[nearest] - wanted)
    allowed = tolerance + np.spacing(at.astype(np.float32)) + times.unit / 2  # what float32 and whole units round off
    if (distance <= allowed).all():
        return times.pts[nearest]
    step = int(np.argmax(distance > allowed))
    at_step = f"episode {episode.index} has frame {step} at {wanted[step]:.4f} s"
    if wanted[step] > seconds[-1]:
        ends = f"has {len(seconds)} frames and ends at {seconds[-1]:.4f} s"
        raise ValueError(f"{times.file} {ends} but {at_step}; copy the video again, or exclude [{episode.name}]")
    nearest_s = seconds[nearest[step]]
    beyond = f"at {nearest_s:.4f} s, more than dataset.timestamp_tolerance_s {tolerance:g} away"
    raise ValueError(f"{times.file}: {at_step} but the nearest is {beyond}; raise it, or exclude [{episode.name}]")


def decode_frames(file: Path, pts: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the frames (H, W, 3) uint8 RGB with these presentation times, in ascending order."""
    wanted, step = pts.tolist(), 0
    with opened_video(file) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1  # other workers decode other episodes
        container.seek(wanted[0], stream=stream)
        try:
            for frame in container.decode(stream):
                while step < len(wanted) and frame.pts == wanted[step]:
                    yield frame.to_ndarray(format="rgb24")
                    step += 1
                if step == len(wanted):
                    return
        except library().error.FFmpegError as error:
            problem = f"frame {step} of {len(wanted)} cannot be decoded ({one_line(error)})"
            raise ValueError(f"{file}: {problem}; copy the video again") from None
    at = wanted[step] * float(stream.time_base)
    raise ValueError(f"{file}: the frame at {at:.4f} s cannot be decoded; copy the video again")


def opened_video(file: Path):
    """An open container; raises ValueError if it cannot be opened or has no video."""
    av = library()
    try:
        container = av.open(str(file))
    except (av.error.FFmpegError, OSError) as error:
        raise ValueError(f"{file} cannot be read ({one_line(error)}); copy the data set again") from None
    if not container.streams.video:
        container.close()
        raise ValueError(f"{file} has no video stream; copy it again")
    return container


def library() -> ModuleType:
    """The package PyAV."""
    try:
        import av
    except ImportError:
        raise ValueError("videos of LeRobot data sets need the package PyAV: pip install av") from None
    return av
