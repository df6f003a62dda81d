"""Instances of one video: what every label format is read to.

Letters: M instances, K nodes of a skeleton.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

UNKNOWN = -1  # identity of an instance without one


@dataclass(frozen=True)
class Sequence:
    """The instances of one video, in the order of their frames.

    Attributes:
        source: The label file, or the folder of masks.
        frames: (M,) int64, frame of the video, from 0.
        points: (M, K, 2) float32, x and y in px, NaN for a node that is not visible.
        identities: (M,) int64, number of the track, `UNKNOWN` without one.
        scores: (M,) float32, confidence of a detection; 1 for one that was drawn by hand.
        nodes: Names of the nodes; `("centroid",)` for formats without a skeleton.
        tracks: Names of the identities.
        boxes: (M, 4) float32, y1 x1 y2 x2 in px, where the format has boxes of its own.
        size: Height and width of the video in px, where the format says them.
        masks: Label image of each frame that has one, by frame; their values are in `mask_labels`.
        mask_labels: (M,) int64, the value of an instance in its frame's label image.
        notes: Lines for people about how the labels were read.
    """

    source: Path
    frames: np.ndarray
    points: np.ndarray
    identities: np.ndarray
    scores: np.ndarray
    nodes: tuple[str, ...] = ("centroid",)
    tracks: tuple[str, ...] = ()
    boxes: np.ndarray | None = None
    size: tuple[int, int] | None = None
    masks: dict[int, Path] = dataclasses.field(default_factory=dict)
    mask_labels: np.ndarray | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def start(self) -> int:
        """The first frame with an instance."""
        return int(self.frames[0])

    @property
    def stop(self) -> int:
        """The frame after the last one with an instance."""
        return int(self.frames[-1]) + 1

    def check_identities(self) -> None:
        """ValueError if a track has two instances in one frame: they cannot be one individual."""
        known = np.flatnonzero(self.identities != UNKNOWN)
        pairs, counts = np.unique(np.stack([self.frames[known], self.identities[known]]), axis=1, return_counts=True)
        if (counts > 1).any():
            frame, identity = pairs[:, counts > 1][:, 0]
            twice = f"track {self.tracks[identity]} has {counts.max()} instances in frame {frame}"
            raise ValueError(f"{self.source}: {twice}; keep one, or give the others tracks of their own")

    def within(self, start: int, stop: int) -> slice:
        """The instances of frames start … stop - 1."""
        return slice(*np.searchsorted(self.frames, [start, stop]).tolist())

    def extent(self) -> tuple[int, int]:
        """Height and width in px that contain all points and boxes."""
        parts = [self.points.reshape(-1, 2)[:, ::-1]] + ([] if self.boxes is None else [self.boxes[:, 2:]])
        height, width = np.nanmax(np.concatenate(parts), axis=0)
        return int(height) + 1, int(width) + 1


def sequence_of(source: Path, frames: Any, points: Any, tracks: Any, scores: Any = None, **others: Any) -> Sequence:
    """A `Sequence` from rows in any order.

    Rows without a finite point are left out: nothing can be cut, compared or drawn there.

    Args:
        frames: Whole numbers from 0.
        tracks: Name of the track of each row, None without one; identities are numbered in the order of `sorted`.
        scores: One for each row; None: 1.

    Raises:
        ValueError: a frame is no such number, or no rows are left.
    """
    frames = np.asarray(frames, np.float64)
    is_number = (frames >= 0) & (frames < 2**31) & (frames == np.floor(frames))
    if not is_number.all():
        raise ValueError(f"{source}: frame {frames[~is_number][0]:g} is not a whole number from 0; correct the file")
    frames = frames.astype(np.int64)
    points = np.asarray(points, np.float32)
    points = points.reshape(len(frames), points.size // (2 * max(1, len(frames))), 2)
    points = np.where(np.isfinite(points).all(-1, keepdims=True), points, np.float32(np.nan))
    order = np.argsort(frames, kind="stable")
    order = order[np.isfinite(points[order]).any((1, 2))]
    if not len(order):
        raise ValueError(f"{source}: there are no instances")
    names = sorted({name for name in tracks if name is not None}, key=lambda name: (isinstance(name, str), name))
    number = {name: index for index, name in enumerate(names)}
    identities = np.array([UNKNOWN if name is None else number[name] for name in tracks], np.int64)
    scores = np.ones(len(frames)) if scores is None else scores
    for key, kind in (("boxes", np.float32), ("mask_labels", np.int64)):
        if key in others:
            others[key] = np.asarray(others[key], kind)[order]
    return Sequence(
        source,
        frames[order],
        points[order],
        identities[order],
        np.asarray(scores, np.float32)[order],
        tracks=tuple(map(str, names)),
        **others,
    )
