"""From scores between detections to tracks, frame by frame, in constant memory.

Shapes: n detections of the frame, R detections of earlier frames (references), K tracks.

Source: the tracker of DREEM (https://dreem.sleap.ai): scores summed over the newest detections of a track, geometric
corrections, and the Hungarian algorithm.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import linear_sum_assignment

from data.tracks.config import TrackerSettings
from metrics.tracking import distances, iou

UNTRACKED = -1
TEMPERATURE = 0.1  # of confidences


@dataclass
class Track:
    """One identity.

    Attributes:
        seen: Newest detections: (frame, box (4,) y1x1y2x2 in px).
        angle: Direction of the last detection in degrees, NaN if unknown.
    """

    seen: deque[tuple[int, np.ndarray]]
    angle: float = math.nan

    @property
    def last_frame(self) -> int:
        return self.seen[-1][0]

    def box(self, frame: int, motion: bool) -> np.ndarray:
        """The last box; with `motion` moved on at the mean velocity of the newest detections."""
        (first, start), (last, box) = self.seen[0], self.seen[-1]
        if not motion or first == last:
            return box
        moved = centres(box[None])[0] - centres(start[None])[0]
        return box + np.tile(moved * ((frame - last) / (last - first)), 2)


@dataclass
class Assigned:
    """What `Tracker.update` found for one frame.

    Attributes:
        identities: (n,) numbers of tracks; `UNTRACKED` where `max_tracks` leaves none.
        confidences: (n,) probability of the chosen track among all; of a new one, that it is none of them;
            0 for `UNTRACKED`.
        is_unsure: One of the choices is less certain than `confidence_threshold` asks for.
    """

    identities: np.ndarray
    confidences: np.ndarray
    is_unsure: bool


@dataclass
class Tracker:
    """Gives the detections of each frame identities; call `update` for all frames of one video in their order."""

    settings: TrackerSettings
    tracks: dict[int, Track] = field(default_factory=dict)
    frames: deque[tuple[int, np.ndarray]] = field(default_factory=deque)
    count: int = 0

    def update(
        self,
        frame: int,
        boxes: np.ndarray,
        logits: np.ndarray,
        references: np.ndarray,
        angles: np.ndarray | None = None,
    ) -> Assigned:
        """Assign the detections of one frame.

        Args:
            frame: Its number; larger than those before.
            boxes: (n, 4) y1 x1 y2 x2 in px.
            logits: (n, R), that detection and reference are one animal, against 0 that the animal is not there.
            references: (R, 2) frame and index in its frame of each reference; those of other frames than the last
                `settings.context` have no effect.
            angles: (n,) directions in degrees, see `principal_angles`.
        """
        self._forget(frame)
        names = list(self.tracks)
        scores, seen = self._scores(logits, references, names)
        scores = self._with_geometry(scores, names, frame, boxes, angles)
        limits = self.settings.overlap_thresh * (seen if self.settings.mult_thresh else 1)
        chosen = self._choose(scores, np.broadcast_to(limits, len(names)))
        probabilities = softmax(scores / TEMPERATURE)
        identities = np.full(len(boxes), UNTRACKED)
        confidences = np.zeros(len(boxes))
        for row in range(len(boxes)):
            column = chosen.get(row)
            if column is not None:
                identities[row], confidences[row] = names[column], probabilities[row, column]
            elif self.settings.max_tracks is None or self.count < self.settings.max_tracks:
                identities[row], self.count = self.count, self.count + 1
                confidences[row] = 1 - scores[row].max(initial=0.0).clip(0, 1)
        self._remember(frame, boxes, identities, angles)
        unsure = normalized_entropy(probabilities).max(initial=0.0) > 1 - self.settings.confidence_threshold
        return Assigned(identities, confidences, bool(unsure))

    def _forget(self, frame: int) -> None:
        """Drop frames and tracks that are out of reach."""
        context = self.settings.context
        while self.frames and frame - self.frames[0][0] > context:
            self.frames.popleft()
        if self.settings.max_tracks is None or self.count < self.settings.max_tracks:
            ended = [name for name, track in self.tracks.items() if frame - track.last_frame > context]
            for name in ended:
                del self.tracks[name]

    def _scores(self, logits: np.ndarray, references: np.ndarray, names: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """(scores (n, K), detections of each track that they are sums over (K,)).

        In each frame the references and "not there" share a probability of 1; a track's score is its sum over frames.
        """
        column_of, identities = {name: column for column, name in enumerate(names)}, dict(self.frames)
        scores, seen = np.zeros((len(logits), len(names))), np.zeros(len(names), int)
        for number in sorted(set(references[:, 0].tolist()) & identities.keys(), reverse=True):
            columns = np.flatnonzero(references[:, 0] == number)
            probabilities = softmax(np.pad(logits[:, columns], ((0, 0), (0, 1))))
            for place, index in enumerate(references[columns, 1]):
                track = column_of.get(int(identities[number][index]))
                if track is not None and seen[track] < self.settings.window_size:
                    scores[:, track] += probabilities[:, place]
                    seen[track] += 1
        return scores, seen

    def _with_geometry(
        self, scores: np.ndarray, names: list[int], frame: int, boxes: np.ndarray, angles: np.ndarray | None
    ) -> np.ndarray:
        """Scores (n, K) corrected by overlap, distance and direction, as the settings say."""
        settings = self.settings
        if not scores.size:
            return scores
        last = np.stack([self.tracks[name].box(frame, settings.motion) for name in names])
        if settings.iou is not None:
            overlaps = iou(boxes, last)
            is_product = settings.iou == "mult"
            scores = scores + np.abs(overlaps - scores) * overlaps if is_product else np.maximum(scores, overlaps)
        if settings.max_center_dist is not None:
            scores = scores - excess(distances(centres(boxes), centres(last)), settings.max_center_dist)
        if settings.max_angle_diff is not None and angles is not None:
            before = np.array([self.tracks[name].angle for name in names])
            turned = np.abs((angles[:, None] - before[None] + 90) % 180 - 90)  # an axis has no front
            scores = scores - excess(np.nan_to_num(turned), settings.max_angle_diff)
        return scores

    def _choose(self, scores: np.ndarray, limits: np.ndarray) -> dict[int, int]:
        """Row -> column of the assignment with the largest sum whose scores are above the limits (K,)."""
        is_full = self.settings.max_tracks is not None and self.count >= self.settings.max_tracks
        pairs = zip(*linear_sum_assignment(scores, maximize=True), strict=True) if scores.size else ()
        return {int(row): int(column) for row, column in pairs if is_full or scores[row, column] > limits[column]}

    def _remember(self, frame: int, boxes: np.ndarray, identities: np.ndarray, angles: np.ndarray | None) -> None:
        self.frames.append((frame, identities))
        for row, name in enumerate(identities.tolist()):
            if name == UNTRACKED:
                continue
            track = self.tracks.setdefault(name, Track(deque(maxlen=self.settings.window_size)))
            track.seen.append((frame, np.asarray(boxes[row], np.float64)))
            track.angle = math.nan if angles is None else float(angles[row])


def centres(boxes: np.ndarray) -> np.ndarray:
    """(n, 4) y1 x1 y2 x2 -> (n, 2) y x"""
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def excess(values: np.ndarray, limit: float) -> np.ndarray:
    """How far values lie beyond a limit, in shares of it."""
    return (values / limit - 1).clip(min=0)


def softmax(values: np.ndarray) -> np.ndarray:
    """Over the last axis, which may be empty."""
    shifted = np.exp(values - values.max(-1, keepdims=True, initial=-math.inf))
    return shifted / shifted.sum(-1, keepdims=True)


def normalized_entropy(probabilities: np.ndarray) -> np.ndarray:
    """Of each row (n, K), in shares of the largest possible; 0 with one choice or none."""
    choices = probabilities.shape[1]
    if choices < 2:
        return np.zeros(len(probabilities))
    entropy = -(probabilities * np.log(probabilities.clip(min=1e-300))).sum(1)
    return (entropy / math.log(choices)).clip(max=1)  # rounding would make equal choices less certain than possible


def principal_angles(points: np.ndarray) -> np.ndarray:
    """Direction of the longest axis of each instance's points (n, K, 2) x y, NaN with fewer than two: (n,) degrees."""
    angles = np.full(len(points), math.nan)
    for row, instance in enumerate(points):
        visible = instance[~np.isnan(instance).any(-1)]
        if len(visible) >= 2:
            x, y = np.linalg.svd(visible - visible.mean(0), full_matrices=False)[2][0]
            angles[row] = math.degrees(math.atan2(y, x)) % 180
    return angles
