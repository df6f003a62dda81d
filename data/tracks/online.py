"""Tracks a video frame by frame with a model: constant memory, and the same cost for each frame.

Shapes: n detections of the frame, R of the frames before in the window, A anchors, D width of features.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from data.tracks.recording import Frame
from data.tracks.scoring import outline
from data.tracks.tracker import Assigned, Tracker, principal_angles
from data.tracks.tracker_settings import TrackerSettings


class OnlineTracker:
    """The tracker of one video. Each detection's features are computed once and kept for the window.

    Args:
        model: With `encode` and a forward that takes `features`; see `models.tracker.network`.
    """

    def __init__(self, model: Any, settings: TrackerSettings):
        self.model, self.context = model, settings.context
        self.tracker = Tracker(settings)
        self.past: deque[tuple[int, Any, Any]] = deque()  # frame, boxes (n, A, 4), features (n, D)

    def update(self, frame: Frame, features: Any) -> Assigned:
        """Assign the detections of the next frame.

        Args:
            features: (n, D), see `encoded`.
        """
        import torch

        while self.past and frame.index - self.past[0][0] > self.context:
            self.past.popleft()
        boxes = torch.from_numpy(in_shares(frame)).to(features.device)
        counts = [len(part) for _, _, part in self.past]
        frames = [number for number, _, _ in self.past]
        references = np.array([(n, i) for n, count in zip(frames, counts, strict=True) for i in range(count)], int)
        self.past.append((frame.index, boxes, features))
        all_features = torch.cat([part for _, _, part in self.past])
        logits = np.zeros((len(frame), len(references)))
        if logits.size:
            times = torch.tensor([*np.repeat(frames, counts).tolist(), *[frame.index] * len(frame)])
            outputs = self.model(
                boxes=torch.cat([part for _, part, _ in self.past])[None],
                times=times[None].to(features.device),
                mask=torch.ones(1, len(all_features), dtype=torch.bool, device=features.device),
                features=all_features[None],
            )
            logits = outputs["association"][-1, 0, len(references) :, : len(references)].float().cpu().numpy()
        angles = principal_angles(frame.centres)
        return self.tracker.update(frame.index, outline(frame.boxes), logits, references.reshape(-1, 2), angles)


def encoded(model: Any, frames: list[Frame]) -> list[Any]:
    """Features of the detections of each frame, (n, D); computed for all frames at once."""
    import torch

    device = next(model.parameters()).device
    counts = [len(frame) for frame in frames]
    boxes = torch.from_numpy(np.concatenate([in_shares(frame) for frame in frames]))[None].to(device)
    crops = None
    if frames[0].crops is not None:
        crops = torch.from_numpy(np.concatenate([frame.crops for frame in frames]))[None].to(device)
    mask = torch.ones(1, sum(counts), dtype=torch.bool, device=device)
    return list(model.encode(boxes, mask, crops)[0].split(counts))


def in_shares(frame: Frame) -> np.ndarray:
    """The boxes of a frame in shares of its height and width: (n, A, 4) float32."""
    height, width = frame.size
    return (frame.boxes / (height, width, height, width)).astype(np.float32)
