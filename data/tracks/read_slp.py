"""SLEAP's .slp files, by sleap-io."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from data.tracks.sequence import Sequence, sequence_of


def read_slp(path: Path) -> Sequence:
    """The instances of a .slp file with one video; predicted ones count where no other replaces them.

    Raises:
        ValueError: it cannot be read, or has several videos.
    """
    try:
        import sleap_io
    except ImportError:
        raise ValueError(f"{path}: .slp files need sleap-io; pip install 'keel[tracking]'") from None
    try:
        labels = sleap_io.load_slp(str(path), open_videos=False)
    except Exception as error:  # h5py, json and sleap-io raise whatever a damaged file leads them to
        raise ValueError(f"{path}: the file cannot be read ({' '.join(str(error).split())})") from None
    if len(labels.videos) > 1 or len(labels.skeletons) != 1:
        counts = f"{len(labels.videos)} videos and {len(labels.skeletons)} skeletons"
        raise ValueError(f"{path}: the file has {counts}; save one file for each video")
    number = {id(track): index for index, track in enumerate(labels.tracks)}
    frames, points, tracks, scores = [], [], [], []
    for frame in labels:
        for instance in [*frame.user_instances, *frame.unused_predictions]:
            frames.append(int(frame.frame_idx))
            points.append(instance.numpy())
            tracks.append(number.get(id(instance.track)))
            scores.append(score_of(instance))
    sequence = sequence_of(path, frames, points, tracks, scores, nodes=tuple(labels.skeletons[0].node_names))
    names = tuple(labels.tracks[int(index)].name for index in sequence.tracks)
    return dataclasses.replace(sequence, tracks=names)


def score_of(instance: Any) -> float:
    score = getattr(instance, "score", 1.0)
    return 1.0 if score is None or not np.isfinite(score) else float(score)
