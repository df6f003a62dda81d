"""Tracking a long video: frames a second and memory, and the time of the last frames against the first.

    python benchmarks/tracking.py [frames] [animals]

A synthetic video of animals that walk at random, tracked frame by frame with a small untrained network and with the
tracker alone. Linear time is a ratio near 1; constant memory a growth near 0.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data.tracks.config import TrackerSettings
from data.tracks.online import OnlineTracker, encoded
from data.tracks.recording import Frame
from models.tracker import build
from models.tracker.config import Config, EncoderConfig

SIDE, CROP, BATCH = 1024, 32, 16


def video(frames: int, animals: int) -> Iterator[Frame]:
    """Frames whose detections are in random order; one in ten is missing."""
    generator = np.random.default_rng(0)
    places = generator.uniform(0, SIDE, (animals, 2))
    for index in range(frames):
        places = (places + generator.normal(0, 5, places.shape)).clip(CROP, SIDE - CROP)
        rows = generator.permutation(np.flatnonzero(generator.random(animals) > 0.1))
        centres = places[rows, None].astype(np.float32)
        corners = centres[..., ::-1]
        yield Frame(
            index=index,
            size=(SIDE, SIDE),
            boxes=np.concatenate([corners - CROP / 2, corners + CROP / 2], axis=-1),
            centres=centres,
            crops=generator.integers(0, 256, (len(rows), 1, CROP, CROP), dtype=np.uint8),
            points=centres,
            identities=rows,
            scores=np.ones(len(rows), np.float32),
            rows=rows,
        )


def measure(frames: int, animals: int) -> dict[str, float]:
    torch.manual_seed(0)
    config = Config(
        crop_size=CROP, channels=1, anchors=1, clip_length=9, encoder_cfg=EncoderConfig("conv", widths=[8, 16])
    )
    model = build(config, SimpleNamespace(cache_dir=None)).eval()
    tracker = OnlineTracker(model, TrackerSettings(max_tracks=animals))
    seconds, memory, batch = [], [], []
    for frame in video(frames, animals):
        batch.append(frame)
        if len(batch) == BATCH or frame.index == frames - 1:
            start = time.perf_counter()
            with torch.no_grad():
                for shown, features in zip(batch, encoded(model, batch), strict=True):
                    tracker.update(shown, features)
            seconds.append((time.perf_counter() - start) / len(batch))
            memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
            batch = []
    tenth = max(1, len(seconds) // 10)
    return {
        "frames": frames,
        "animals": animals,
        "frames_per_second": 1 / float(np.mean(seconds)),
        "last_tenth_to_second_tenth": float(np.median(seconds[-tenth:]) / np.median(seconds[tenth : 2 * tenth])),
        "peak_mb": memory[-1],
        "growth_mb_after_first_tenth": memory[-1] - memory[tenth],
        "kept_frames": len(tracker.past),
        "kept_tracks": len(tracker.tracker.tracks),
    }


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:]]
    print(json.dumps(measure(*(numbers + [10_000, 5][len(numbers) :]))))
