"""A video with its labels: whole, frame by frame in constant memory, or some of its frames.

Letters: n instances of a frame, K nodes, A anchors, C channels of a crop (of all its anchors), S its side in px.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
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
        quarters: How many times the frame is turned by 90° counter-clockwise, as `np.rot90` does an image.
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
    quarters: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, order: np.ndarray) -> Frame:
        """The instances at these places, in this order."""
        names = ("boxes", "centres", "crops", "points", "identities", "scores", "rows")
        taken = {name: getattr(self, name)[order] for name in names if getattr(self, name) is not None}
        return dataclasses.replace(self, **taken)

    def drawn(self, random: np.random.Generator, scramble: bool) -> Frame:
        """In random order; with `scramble` turned by a random multiple of 90°, whatever is in the frame."""
        quarters = int(random.integers(4))
        frame = self.take(random.permutation(len(self)))
        return frame.turned(quarters) if scramble else frame

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
        places = {"size": (height, width), "boxes": boxes, "centres": centres, "points": points}
        return dataclasses.replace(self, **places, crops=crops, quarters=quarters)


@dataclass(frozen=True)
class Recording:
    """Frames start … stop - 1 of a video with its labels.

    Attributes:
        name: Of the label file, without its ending.
        sequence: All instances of the video.
        video: None: coordinates alone.
        size: Height and width in px.
        number: Of the folder or file in the configuration's list, for its crop size.
        crops: Of all rows of `sequence`; None: they are cut from the video.
        augment: (recording, seed, drops) -> its frames, changed; None: the frames of the labels.
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
    number: int = 0
    crops: CachedCrops | None = None
    augment: Callable[[Recording, tuple[int, ...], bool], Iterator[Frame]] | None = None
    seed: tuple[int, ...] = (0,)
    scramble: bool = False

    def __len__(self) -> int:
        return self.stop - self.start

    def part(self, start: int, stop: int) -> Recording:
        return dataclasses.replace(self, start=start, stop=stop)

    def frames(self, seed: tuple[int, ...] | None = None, drops: bool = True) -> Iterator[Frame]:
        """Every frame, those without instances too, with one image in memory at a time.

        Args:
            seed: In place of the recording's own.
            drops: Leave out what dropout leaves out.
        """
        seed = self.seed if seed is None else seed
        recording = dataclasses.replace(self, cutter=self.cutter.with_anchors(seed, self.sequence.nodes))
        frames = recording.labelled() if self.augment is None else self.augment(recording, seed, drops)
        for frame in frames:
            yield frame.drawn(np.random.default_rng([*seed, frame.index]), self.scramble)

    def images(self) -> Iterator[np.ndarray | None]:
        """(H, W, C) uint8 of each frame; None without a video.

        Raises:
            ValueError: a frame cannot be decoded.
        """
        images = iter(()) if self.video is None else self.video.frames(self.start, self.stop)
        for index in range(self.start, self.stop):
            image = next(images, None)
            if image is None and self.video is not None:
                raise ValueError(f"{self.video.path}: frame {index} cannot be decoded")
            yield image

    def labelled(self) -> Iterator[Frame]:
        """Every frame as the labels have it: in their order, not turned, not augmented."""
        for index, image in self.numbered_images():
            yield self.frame(index, image)

    def numbered_images(self) -> Iterator[tuple[int, np.ndarray | None]]:
        """(index, image from which crops are to be cut) of each frame; no image where they are in the cache."""
        images = [None] * len(self) if self.crops is not None else self.images()
        return zip(range(self.start, self.stop), images, strict=True)

    def instances(self, index: int) -> Moved:
        """The instances of a frame as the labels have them."""
        part = self.sequence.within(index, index + 1)
        boxes = None if self.sequence.boxes is None else self.sequence.boxes[part]
        return Moved(np.arange(part.start, part.stop), self.sequence.points[part], boxes, self.size)

    def frame(self, index: int, image: np.ndarray | None, moved: Moved | None = None) -> Frame:
        """The instances of a frame in the order of the labels.

        Args:
            image: (H, W, C); without it, crops come from the cache, if there is one.
            moved: The instances after an augmentation; None: those of the labels.
        """
        sequence, moved = self.sequence, moved or self.instances(index)
        stays, centres = self.cutter.centres(moved.points, sequence.nodes)
        rows, points = moved.rows[stays], moved.points[stays]
        if image is not None:
            crops = self.cutter.crops(image, centres, points)
        else:
            crops = None if self.crops is None else self.crops[rows]
        has_own = moved.boxes is not None and len(self.cutter.anchors) == 1
        return Frame(
            index,
            moved.size,
            moved.boxes[stays, None] if has_own else self.cutter.boxes(centres),
            centres.astype(np.float32),
            crops,
            points,
            sequence.identities[rows],
            sequence.scores[rows],
            rows,
        )


@dataclass(frozen=True)
class Moved:
    """Instances of a frame before boxes around anchors and crops are made.

    Attributes:
        rows: (n,) int64, see `Frame`.
        points: (n, K, 2) x y px.
        boxes: (n, 4) y1 x1 y2 x2 px, where the format has boxes of its own.
        size: Height and width of the frame in px.
    """

    rows: np.ndarray
    points: np.ndarray
    boxes: np.ndarray | None
    size: tuple[int, int]

    def take(self, kept: np.ndarray) -> Moved:
        boxes = None if self.boxes is None else self.boxes[kept]
        return Moved(self.rows[kept], self.points[kept], boxes, self.size)


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
