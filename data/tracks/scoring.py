"""The metric of tracks: the tracker over each video of a data set, its identities compared with the true ones.

Shapes: B samples, N instances of a clip, n detections of a frame, R detections of the frames before, M true instances.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data.tracks.config import TrackerSettings
from data.tracks.tracker import Assigned, Tracker, centres, principal_angles
from metrics.metric import Metric
from metrics.tracking import DIRECTIONS, TrackingScores, closeness, iou

MAX_AGE = 30  # frames that the tracks of baselines wait
NEEDED = ("boxes", "points", "frames", "mask", "video", "frame", "image_size", "truth_boxes", "truth_identities")
TINY = 1e-3  # px, beyond which the baseline of centroids counts distance


@dataclass
class ScoredFrame:
    """What the tracker and the scores need of one frame.

    Attributes:
        boxes: (n, 4) y1 x1 y2 x2 in px.
        angles: (n,) direction in degrees.
        logits: (n, R)
        references: (R, 2) frame and index in its frame.
        truth_boxes: (M, 4) y1 x1 y2 x2 in px.
        truth: (M,) true identities.
    """

    video: int
    frame: int
    boxes: np.ndarray
    angles: np.ndarray
    logits: np.ndarray
    references: np.ndarray
    truth_boxes: np.ndarray
    truth: np.ndarray


class TrackingMetric(Metric):
    """Scores of `metrics.tracking` over whole videos.

    A sample is the clip that ends at a frame; its association logits of that frame's detections are kept until all
    frames are there, so that neither the size of batches nor the number of processes matters.
    """

    directions = DIRECTIONS

    def __init__(self, settings: TrackerSettings):
        self.settings = settings
        self.frames: list[ScoredFrame] = []

    def reset(self) -> None:
        self.frames = []

    def update(self, batch: Mapping[str, Any], outputs: Any) -> None:
        logits = outputs["association"][-1].float().cpu().numpy()
        arrays = {name: batch[name].cpu().numpy() for name in NEEDED}
        self.frames += [
            scored_frame({name: arrays[name][row] for name in NEEDED}, logits[row]) for row in range(len(logits))
        ]

    def compute(self, loss: float | None = None) -> dict[str, float]:
        self.frames = sorted(gathered(self.frames), key=lambda frame: (frame.video, frame.frame))
        if not all(np.isfinite(frame.logits).all() for frame in self.frames):  # of a model that has diverged
            return dict.fromkeys(DIRECTIONS, math.nan)
        return self.scores(self.settings)

    def scores(self, settings: TrackerSettings) -> dict[str, float]:
        """The scores of a tracker with other settings on the same detections; after `compute`."""
        scores = TrackingScores()
        for frame, assigned in self.tracked(settings):
            kept = assigned.identities >= 0
            similarity = self.similarity(frame.truth_boxes, frame.boxes[kept])
            scores.add(frame.video, frame.truth, assigned.identities[kept], similarity)
        return scores.compute()

    def tracked(self, settings: TrackerSettings) -> Iterator[tuple[ScoredFrame, Assigned]]:
        """Every frame of every video with the identities that a tracker gives its detections."""
        video = tracker = None
        for frame in self.frames:
            if frame.video != video:
                video, tracker = frame.video, Tracker(settings)
            yield frame, tracker.update(frame.frame, frame.boxes, frame.logits, frame.references, frame.angles)

    def similarity(self, truth: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """(M, n) from 0 to 1, see `metrics.tracking`."""
        limit = self.settings.match_distance
        return iou(truth, boxes) if limit is None else closeness(centres(truth), centres(boxes), limit)

    def baselines(self) -> dict[str, dict[str, float]]:
        """Scores of two trackers without a model on the same detections; after `compute`.

        `iou`: overlap with the track's last box. `velocity`: distance from where its last displacement leads, up to
        the side of its box.
        """
        sides = [frame.boxes[:, 2:] - frame.boxes[:, :2] for frame in self.frames]
        side = float(np.concatenate(sides).mean()) if sum(map(len, sides)) else 1.0
        shared = {"max_gap": MAX_AGE, "mult_thresh": False}
        kinds = {
            "iou": TrackerSettings(iou="max", overlap_thresh=0, **shared),
            "velocity": TrackerSettings(
                window_size=2, motion=True, max_center_dist=TINY, overlap_thresh=-side / TINY, **shared
            ),
        }
        blind = TrackingMetric(self.settings)
        blind.frames = [replace(one, logits=one.logits[:, :0], references=one.references[:0]) for one in self.frames]
        return {name: blind.scores(settings) for name, settings in kinds.items()}


def scored_frame(sample: Mapping[str, np.ndarray], logits: np.ndarray) -> ScoredFrame:
    """One sample of a batch as arrays, with its association logits (N, N)."""
    number, (height, width) = int(sample["frame"]), sample["image_size"]
    pixels = np.array([height, width, height, width])
    rows = np.flatnonzero(sample["mask"] & (sample["frames"] == number))
    columns = np.flatnonzero(sample["mask"] & (sample["frames"] < number))
    frames = sample["frames"][columns]
    first = np.searchsorted(frames, frames)  # of the same frame: detections of a clip are in the order of its frames
    is_true = sample["truth_identities"] >= 0
    boxes, points = sample["boxes"][rows], sample["points"][rows]
    is_missing = ~boxes.any(-1, keepdims=True)
    points = np.where(is_missing, np.nan, points)[..., ::-1] * (width, height)
    return ScoredFrame(
        int(sample["video"]),
        number,
        outline(boxes) * pixels,
        principal_angles(points),
        logits[np.ix_(rows, columns)],
        np.stack([frames, np.arange(len(frames)) - first], axis=1),
        sample["truth_boxes"][is_true] * pixels,
        sample["truth_identities"][is_true],
    )


def outline(boxes: np.ndarray) -> np.ndarray:
    """The mean of the boxes of all anchors that an instance has: (n, A, 4) -> (n, 4)."""
    present = boxes.any(-1, keepdims=True)
    return boxes.sum(1) / present.sum(1).clip(min=1)


def gathered(frames: list[ScoredFrame]) -> list[ScoredFrame]:
    """The frames of all processes."""
    import torch.distributed as processes

    if not (processes.is_available() and processes.is_initialized()):
        return frames
    parts: list[list[ScoredFrame]] = [[] for _ in range(processes.get_world_size())]
    processes.all_gather_object(parts, frames)
    return [frame for part in parts for frame in part]
