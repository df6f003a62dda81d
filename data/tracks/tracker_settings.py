"""Keys of the tracker; importing this needs only the standard library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from storage.config_keys import key


@dataclass
class TrackerSettings:
    """`dataset.tracker`: how detections become tracks, for evaluation and prediction."""

    window_size: int = key(8, "newest detections of a track that a new one is compared with", ge=1)
    max_gap: int | None = key(
        None, "frames after which a track that was not seen ends, at least window_size; null: window_size", ge=1
    )
    overlap_thresh: float = key(0.01, "a detection continues a track if its score is above this", ge=0)
    mult_thresh: bool = key(True, "this threshold counts for each detection of the track in the window")
    iou: Literal["mult", "max"] | None = key(
        None, "combine scores with the overlap with the track's last box: s + |iou - s| iou, or the larger"
    )
    max_center_dist: float | None = key(
        None, "distance to the track's last place, in px, beyond which the score falls", gt=0
    )
    max_angle_diff: float | None = key(
        None, "change of direction, in degrees, beyond which the score falls (two anchors at least)", gt=0
    )
    max_tracks: int | None = key(None, "most identities in a video; once they exist, tracks do not end", ge=1)
    confidence_threshold: float = key(
        0.0, "flag a frame whose assignment is less certain (1 - normalized entropy)", ge=0, le=1
    )
    motion: bool = key(False, "compare places with where constant velocity takes the track, not with its last place")
    match_distance: float | None = key(
        None,
        "scores: a detection is a true instance up to this distance of their centres, in px; null: from an overlap of "
        "their boxes of .5 (intersection over union)",
        gt=0,
    )

    def __post_init__(self) -> None:
        if self.max_gap is not None and self.max_gap < self.window_size:
            raise ValueError(f"max_gap: {self.max_gap} must be at least window_size: {self.window_size}; change one")
        if self.motion and (self.window_size < 2 or (self.iou is None and self.max_center_dist is None)):
            raise ValueError("motion: true has an effect only with window_size: 2 or more and iou or max_center_dist")

    @property
    def context(self) -> int:
        """Frames before the current one whose detections are compared with."""
        return self.max_gap or self.window_size
