"""Clips of consecutive frames as samples, and batches of them.

Letters: B clips, N instances of the largest clip, n of one clip, A anchors, C channels of a crop (of all its anchors),
S its side in px.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from data.samplers import ShuffledSampler
from data.tracks.recording import Frame, Recording
from data.tracks.scoring import outline
from data.tracks.sequence import UNKNOWN

Sample = dict[str, np.ndarray]
WHOLE = ("video", "frame", "image_size")  # entries of a sample that do not consist of instances


class ClipSampler(ShuffledSampler):
    """Every clip once an epoch. An index also says the epoch, so that `Clips` draws other random numbers in each."""

    def order(self, generator: np.random.Generator) -> np.ndarray:
        return generator.permutation(self.samples) + self.epoch * self.samples


class Clips(torch.utils.data.Dataset):
    """Clips of recordings.

    Index `epoch · len + i` is clip i with the random numbers of an epoch: order of the instances, turns, augmentations.

    Args:
        recordings: Clips do not go beyond the frames of one.
        clip_length: Frames of a clip; None: all of the recording.
        seed: Of the random numbers.
        per_epoch: Draw new random numbers in each epoch; false: those of the recording, in every epoch.
    """

    def __init__(self, recordings: Sequence[Recording], clip_length: int | None, seed: int = 0, per_epoch: bool = True):
        self.recordings, self.seed, self.per_epoch = list(recordings), seed, per_epoch
        self.clips = [
            (number, *bounds)
            for number, recording in enumerate(self.recordings)
            for bounds in cut(recording, clip_length)
        ]

    def __len__(self) -> int:
        return len(self.clips)

    def keep(self, places: Sequence[int]) -> None:
        """Leave all other clips out."""
        self.clips = [self.clips[place] for place in places]

    def videos(self) -> list[Recording]:
        """The recordings as a whole, for inference and scoring: their `frames()` are read one by one."""
        return self.recordings

    def where(self, index: int) -> str:
        number, start, stop = self.clips[index % len(self)]
        return f"{self.recordings[number].name}, frames {start} to {stop - 1}"

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        return [self[index] for index in indices]

    def __getitem__(self, index: int) -> Sample:
        epoch, place = divmod(index, len(self))
        number, start, stop = self.clips[place]
        seed = (self.seed, epoch, place) if self.per_epoch else None
        frames = list(self.recordings[number].part(start, stop).frames(seed))
        return {**as_arrays(frames, start), "video": np.int64(number)}


def cut(recording: Recording, clip_length: int | None) -> Iterator[tuple[int, int]]:
    """(first frame, frame after the last) of each clip in which some identity appears twice: others have no target."""
    length = clip_length or max(len(recording), 1)
    for start in range(recording.start, recording.stop, length):
        stop = min(start + length, recording.stop)
        identities = recording.sequence.identities[recording.sequence.within(start, stop)]
        known = identities[identities != UNKNOWN]
        if len(known) > len(np.unique(known)):
            yield start, stop


def as_arrays(frames: Sequence[Frame], start: int) -> Sample:
    """The instances of all frames, one after another; boxes and points in shares of their frame's height and width."""

    def shares(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        return np.nan_to_num(values / np.resize(np.array(size, np.float32), values.shape[-1])).astype(np.float32)

    sample = {
        "boxes": np.concatenate([shares(frame.boxes, frame.size) for frame in frames]),
        "points": np.concatenate([shares(frame.centres[..., ::-1], frame.size) for frame in frames]),
        "identities": np.concatenate([frame.identities for frame in frames]),
        "frames": np.concatenate([np.full(len(frame), frame.index) for frame in frames]),
    }
    if frames[0].crops is not None:
        sample["crops"] = np.concatenate([frame.crops for frame in frames])
    return {**sample, "times": sample["frames"] - start}


def collate(samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
    """Clips -> a batch, padded to N instances; `mask` is false and `identities` are -1 for padding.

    Returns:
        boxes (B, N, A, 4) float32, y1 x1 y2 x2, y in shares of the height and x of the width; points (B, N, A, 2)
        float32, y x likewise; times (B, N) int64, frame in the clip; frames (B, N) int64, frame in the video;
        identities (B, N) int64, -1 unknown; mask (B, N) bool; video (B,) int64, number of the recording; with images
        crops (B, N, C, S, S) uint8; of `Windows` its further entries.
    """
    batch = {
        name: torch.from_numpy(
            np.stack([sample[name] for sample in samples]) if name in WHOLE else padded(samples, name)
        )
        for name in samples[0]
    }
    counts = torch.tensor([len(sample["times"]) for sample in samples])
    return {**batch, "mask": torch.arange(batch["times"].shape[1]) < counts[:, None]}


def padded(samples: Sequence[Sample], name: str) -> np.ndarray:
    """(n, …) of each sample -> (B, N, …)"""
    most, first = max(1, *(len(sample[name]) for sample in samples)), samples[0][name]  # N is never 0
    fill = UNKNOWN if name.endswith("identities") else 0
    result = np.full((len(samples), most, *first.shape[1:]), fill, first.dtype)
    for row, sample in zip(result, samples, strict=True):
        row[: len(sample[name])] = sample[name]
    return result


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
