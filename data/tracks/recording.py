"""A video with its labels: whole, frame by frame in constant memory, or some of its frames.

Letters: n instances of a frame, K nodes, A anchors, C channels of a crop (of all its anchors), S its side in px.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data.tracks.crops import Cutter
from data.tracks.sequence import Sequence
from data.tracks.video import Video


@dataclass(frozen=True)
class Frame:
    """The instances of one frame, in random order: the order of the labels would give the identities away.

    Attributes:
        index: Of the frame in its video.
        size: Height and width in px.
        boxes: (n, A, 4) float32, y1 x1 y2 x2 in px; 0 for a missing anchor.
        centres: (n, A, 2) float32, x y in px of the anchors; NaN for a missing one.
        crops: (n, C, S, S) uint8; None without images.
        points: (n, K, 2) float32, x y in px of the nodes, NaN for one that is not visible.
        identities: (n,) int64, numbers in the recording's `sequence.tracks`; -1 unknown.
        scores: (n,) float32, confidence of the detections.
        rows: (n,) int64, which rows of the recording's `sequence` these are.
    """

    index: int
    size: tuple[int, int]
    boxes: np.ndarray
    centres: np.ndarray
    crops: np.ndarray | None
    points: np.ndarray
    identities: np.ndarray
    scores: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, order: np.ndarray) -> Frame:
        """The instances at these places, in this order."""
        names = ("boxes", "centres", "crops", "points", "identities", "scores", "rows")
        taken = {name: getattr(self, name)[order] for name in names if getattr(self, name) is not None}
        return dataclasses.replace(self, **taken)

    def shuffled(self, random: np.random.Generator, scramble: bool) -> Frame:
        """In random order, and with `scramble` turned by a random multiple of 90°."""
        frame = self.take(random.permutation(len(self)))
        return frame.turned(int(random.integers(4))) if scramble else frame

    def turned(self, quarters: int) -> Frame:
        """Turned by quarters of 360°, counter-clockwise."""
        boxes, centres, points, (height, width) = self.boxes, self.centres, self.points, self.size
        missing = np.isnan(centres).any(-1, keepdims=True)
        for _ in range(quarters % 4):
            y1, x1, y2, x2 = np.moveaxis(boxes, -1, 0)
            boxes = np.stack([width - x2, y1, width - x1, y2], -1)
            centres, points = (np.stack([part[..., 1], width - part[..., 0]], -1) for part in (centres, points))
            height, width = width, height
        crops = None if self.crops is None else np.rot90(self.crops, quarters, axes=(-2, -1))
        boxes = np.where(missing, 0, boxes)
        return dataclasses.replace(self, size=(height, width), boxes=boxes, centres=centres, points=points, crops=crops)


@dataclass(frozen=True)
class Recording:
    """Frames start … stop - 1 of a video with its labels.

    Attributes:
        name: Of the label file, without its ending.
        sequence: All instances of the video.
        video: None: coordinates alone.
        size: Height and width in px.
        crops: Of all rows of `sequence`; None: they are cut from the video.
        seed: Of the order of instances in each frame, and of the turns.
        scramble: Turn each frame by a random multiple of 90°.
    """

    name: str
    sequence: Sequence
    video: Video | None
    cutter: Cutter
    size: tuple[int, int]
    start: int
    stop: int
    crops: CachedCrops | None = None
    seed: tuple[int, ...] = (0,)
    scramble: bool = False

    def __len__(self) -> int:
        return self.stop - self.start

    def part(self, start: int, stop: int) -> Recording:
        return dataclasses.replace(self, start=start, stop=stop)

    def frames(self) -> Iterator[Frame]:
        """Every frame, those without instances too, with one image in memory at a time."""
        for frame in self.labelled():
            yield frame.shuffled(np.random.default_rng([*self.seed, frame.index]), self.scramble)

    def labelled(self) -> Iterator[Frame]:
        """Every frame as the labels have it: in their order, not turned."""
        images = iter(()) if self.video is None or self.crops is not None else self.video.frames(self.start, self.stop)
        for index in range(self.start, self.stop):
            yield self.frame(index, next(images, None))

    def frame(self, index: int, image: np.ndarray | None) -> Frame:
        """The instances of a frame in the order of the labels.

        Args:
            image: (H, W, C), needed unless the crops are cached or there is no video.
        """
        sequence = self.sequence
        rows = np.arange(len(sequence))[sequence.within(index, index + 1)]
        stays, centres = self.cutter.centres(sequence.points[rows], sequence.nodes)
        rows = rows[stays]
        crops = None
        if self.crops is not None:
            crops = self.crops[rows]
        elif self.video is not None:
            if image is None:
                raise ValueError(f"{self.video.path}: frame {index} cannot be decoded")
            crops = self.cutter.crops(image, centres, sequence.points[rows])
        own = None if sequence.boxes is None else sequence.boxes[rows, None]
        boxes = own if own is not None and len(self.cutter.anchors) == 1 else self.cutter.boxes(centres)
        return Frame(
            index,
            self.size,
            boxes,
            centres.astype(np.float32),
            crops,
            sequence.points[rows],
            sequence.identities[rows],
            sequence.scores[rows],
            rows,
        )


class CachedCrops:
    """Crops of all rows of a sequence, opened in each process for itself.

    Args:
        path: A .npy file (M, C, S, S) uint8.
    """

    def __init__(self, path: str):
        self.path = path
        self.array: np.ndarray | None = None

    def __getstate__(self) -> dict:
        return {"path": self.path, "array": None}

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        if self.array is None:
            self.array = np.load(self.path, mmap_mode="r")
        return self.array[rows]
