"""Opens labels with their video, checks that they fit, and keeps their crops in a cache."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np

from data.cache import file_identity, key_of, open_or_build, require_disk
from data.tracks.crops import CENTROIDS, Cutter
from data.tracks.find import Source, read_labels
from data.tracks.recording import CachedCrops, Recording
from data.tracks.sequence import Sequence
from data.tracks.video import Video, frame_number, open_video

VERSION = 2  # of what is kept in the cache


def open_recording(
    source: Source, cutter: Cutter, channels: int, image_size: tuple[int, int] | None = None
) -> Recording:
    """The recording of a source, from the first frame with an instance to the last one.

    Args:
        image_size: Height and width in px of coordinates without a video; None: the labels', or their extent.

    Raises:
        ValueError: a file cannot be read, or the labels do not fit the video.
    """
    sequence = read_labels(source.labels)
    check_anchors(cutter, sequence)
    if source.video is None:
        size = image_size or sequence.size or sequence.extent()
        return Recording(source.name, sequence, None, cutter, size, sequence.start, sequence.stop, source.number)
    video = open_video(source.video, channels)
    sequence = aligned(sequence, video)
    start, stop = sequence.start, sequence.stop
    if start < 0 or len(video) < stop:
        labelled = f"{source.labels} has labels of frames {start} to {stop - 1}"
        remedy = "cut the labels, or set dataset.images: false"
        raise ValueError(f"{video.path}: the video has {len(video)} frames, but {labelled}; {remedy}")
    if sequence.masks and sequence.size != video.size:
        raise ValueError(f"{source.labels}: label images are {sequence.size} px, {video.path} {video.size}")
    if cutter.box_side > min(video.size):
        size = f"{video.path}, {video.size[0]}×{video.size[1]} px"
        raise ValueError(f"crop_size: crops of {cutter.box_side} px (with padding) are larger than {size}")
    return Recording(source.name, sequence, video, cutter, video.size, start, stop, source.number)


def aligned(sequence: Sequence, video: Video) -> Sequence:
    """Label images belong to the image files of the same number, also where they begin later."""
    if not sequence.masks or len(video.files()) == 1:
        return sequence
    shift = frame_number(sequence.masks[0]) - min(map(frame_number, video.files()))
    masks = {frame + shift: path for frame, path in sequence.masks.items()}
    return dataclasses.replace(sequence, frames=sequence.frames + shift, masks=masks)


def check_anchors(cutter: Cutter, sequence: Sequence) -> None:
    """ValueError if the skeleton lacks an anchor, or has fewer nodes than are to be drawn."""
    names = [*sequence.nodes, *({"centroid"} - set(sequence.nodes))]
    if isinstance(cutter.anchors, int):
        if cutter.anchors > len(names):
            raise ValueError(f"anchors: {cutter.anchors} are more than {sequence.source} has: {', '.join(names)}")
    elif unknown := [name for name in cutter.anchors if name not in (*names, *CENTROIDS)]:
        raise ValueError(f"anchors: {sequence.source} has no node {unknown[0]}; there are {', '.join(names)}")


def with_cached_crops(recording: Recording, root: Path, budget: float) -> Recording:
    """The recording with all its crops from the cache, cut now if they are not there yet.

    Args:
        root: Folder of the cache.
        budget: In bytes; larger crops are cut each time.
    """
    video, cutter, labels = recording.video, recording.cutter, recording.sequence.source
    if video is None or isinstance(cutter.anchors, int):
        return recording
    shape = (len(recording.sequence), cutter.count * video.channels, *[cutter.side or cutter.box_side] * 2)
    if np.prod(shape, dtype=float) > budget:
        return recording
    files = sorted(labels.iterdir()) if labels.is_dir() else [labels]
    described = {
        "version": VERSION,
        "cutter": vars(cutter),
        "labels": [file_identity(path, path.name) for path in files],
        "video": [file_identity(path, path.name) for path in video.files()],
        "channels": video.channels,
    }
    folder, _ = open_or_build(root, key_of(described), functools.partial(cut_all, recording=recording, shape=shape))
    return dataclasses.replace(recording, crops=CachedCrops(str(folder / "crops.npy")))


def cut_all(folder: Path, recording: Recording, shape: tuple[int, ...]) -> dict[str, Any]:
    """Write the crops of all rows to crops.npy, also of frames beyond the recording's: its other parts read them.

    Rows that have no crop stay black.
    """
    require_disk(folder, int(np.prod(shape)), f"a cache of {shape[0]:,} crops")
    array = np.lib.format.open_memmap(folder / "crops.npy", mode="w+", dtype=np.uint8, shape=shape)
    for frame in recording.part(recording.sequence.start, recording.sequence.stop).labelled():
        array[frame.rows] = frame.crops
    array.flush()
    return {}
