"""Tracks a video frame by frame with a model: constant memory, and the same cost for each frame.

Shapes: n detections of the frame, R of the frames before in the window, A anchors, D width of features.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from data.tracks.clips import as_arrays
from data.tracks.config import TrackerSettings
from data.tracks.recording import Frame
from data.tracks.scoring import outline
from data.tracks.tracker import Assigned, Tracker, principal_angles


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
        boxes = torch.from_numpy(as_arrays([frame], 0)["boxes"]).to(features.device)
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
    arrays = as_arrays(frames, 0)
    tensors = {name: torch.from_numpy(arrays[name])[None].to(device) for name in ("boxes", "crops") if name in arrays}
    mask = torch.ones(tensors["boxes"].shape[:2], dtype=torch.bool, device=device)
    return list(model.encode(tensors["boxes"], mask, tensors.get("crops"))[0].split([len(frame) for frame in frames]))
