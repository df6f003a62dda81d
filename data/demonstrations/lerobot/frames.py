"""The frames of a LeRobot data set at training size, decoded once before training.

Shapes: T steps of an episode, N steps of all, H and W as recorded, h and w in training.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from data.demonstrations.frames import run_jobs
from data.demonstrations.images import FrameFit, decode
from data.demonstrations.lerobot.metadata import opened
from data.demonstrations.lerobot.video import decode_frames


@dataclass(frozen=True)
class Clip:
    """The frames of one camera in one episode: in a video at `pts` (T,), or images in a column of a Parquet file."""

    file: Path
    pts: np.ndarray | None
    column: str = ""
    rows: np.ndarray | None = None  # (T,) of the column

    def read(self) -> Iterator[np.ndarray]:
        """Yield all frames (H, W, 3) uint8 RGB."""
        return decode_frames(self.file, self.pts) if self.pts is not None else self.read_images()

    def read_images(self) -> Iterator[np.ndarray]:
        with opened(self.file) as file:
            ends = np.cumsum([file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)])
            low, high = np.searchsorted(ends, [self.rows.min(), self.rows.max()], side="right").tolist()
            first = int(ends[low - 1]) if low else 0
            images = file.read_row_groups(list(range(low, high + 1)), [self.column])[self.column]
        for step, row in enumerate((self.rows - first).tolist()):
            image = images[row].as_py() or {}
            try:
                # OpenCV decodes to BGR; the images are RGB, as Pillow encodes them.
                yield decode(image.get("bytes") or b"")[..., ::-1]
            except ValueError as error:
                raise ValueError(f"{self.file}: {self.column} step {step}: {error}") from None


class ClipFrames:
    """Frames of all episodes: `clips[episode][camera]`. They are written to arrays, never read one at a time."""

    def __init__(self, folder: Path, clips: list[list[Clip]], offsets: np.ndarray, fit: FrameFit):
        self.folder, self.clips, self.offsets, self.fit = folder, clips, offsets, fit

    def write_to(self, targets: list[np.ndarray] | list[Path]) -> None:
        """Write all frames into one array (N, 3, h, w) per camera, in memory or a .npy file, on all cores."""
        jobs = [
            partial(write_clip, clip, target, start, self.fit)
            for start, clips in zip(self.offsets[:-1].tolist(), self.clips, strict=True)
            for clip, target in zip(clips, targets, strict=True)
        ]
        run_jobs(jobs, int(self.offsets[-1]) * len(targets), targets, self.folder)


def write_clip(clip: Clip, target: np.ndarray | Path, start: int, fit: FrameFit) -> None:
    """Write the frames of a clip into rows `start` … of an array."""
    array = np.load(target, mmap_mode="r+") if isinstance(target, Path) else target
    for row, frame in enumerate(clip.read(), start):
        array[row] = fit(frame)
