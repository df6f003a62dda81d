"""Evaluation sets of recordings: one sample for each frame, with the frames before it.

Letters: B samples, M true instances of the largest last frame.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data.tracks.clips import Clips, Sample, as_arrays
from data.tracks.recording import Recording
from data.tracks.scoring import outline


class Windows(Clips):
    """Sample i ends at frame i: frames i - context … i. The detections of a frame are the same in all of its windows.

    So scores do not depend on the size of a batch or the number of processes. Besides the entries of a clip, a sample
    has `frame`, the last frame's number in the video; `image_size` (2,), its height and width in px; `truth_boxes`
    (M, 4) and `truth_identities` (M,), its labels before any dropout, padded in a batch as those of a clip.

    Args:
        recordings: Windows do not go beyond the frames of one.
        context: Frames before the last one.
    """

    def __init__(self, recordings: Sequence[Recording], context: int):
        self.recordings, self.context = list(recordings), context
        self.clips = [
            (number, max(recording.start, stop - 1 - context), stop)
            for number, recording in enumerate(self.recordings)
            for stop in range(recording.start + 1, recording.stop + 1)
        ]

    def __getitem__(self, index: int) -> Sample:
        number, start, stop = self.clips[index]
        recording = self.recordings[number].part(start, stop)
        *_, last = frames = list(recording.frames())
        return {
            **as_arrays(frames, start),
            **truth(recording.part(stop - 1, stop)),
            "video": np.int64(number),
            "frame": np.int64(last.index),
            "image_size": np.array(last.size, np.float32),
        }


def truth(recording: Recording) -> Sample:
    """The instances of a frame before any is dropped."""
    (frame,) = recording.frames(drops=False)
    return {"truth_boxes": outline(as_arrays([frame], 0)["boxes"]), "truth_identities": frame.identities}
