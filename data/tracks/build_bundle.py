"""From labels and videos to a `Bundle`: recordings, held-out frames, crops in a cache, clips."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

from data.bundle import Bundle
from data.cache import file_identity, key_of, open_or_build, require_disk
from data.tracks.clips import Clips, ClipSampler, collate
from data.tracks.config import Config, Split
from data.tracks.crops import Cutter
from data.tracks.find import Source, find_sources, readers
from data.tracks.recording import CachedCrops, Recording
from data.tracks.sequence import UNKNOWN, Sequence
from data.tracks.video import Video, open_video

VERSION = 1  # of what is kept in the cache
SET_NAMES = {"val": "validation", "test": "test"}


def assemble(config: Config, run: Any) -> Bundle:
    """See `data.tracks.build`."""
    names = [name for name in ("train", "val", "test") if getattr(config, f"{name}_dataset") is not None]
    splits = {name: config.split(name) for name in names}
    recordings = {name: open_recordings(config, split, name, run) for name, split in splits.items()}
    if "val" not in recordings and config.val_frames:
        recordings["train"], recordings["val"] = hold_out(recordings["train"], config.val_frames)
        splits["val"] = config.split("train")
    sets = {name: Clips(parts, splits[name].clip_length, run.seed) for name, parts in recordings.items()}
    side, anchors = max(recording.cutter.box_side for recording in recordings["train"]), splits["train"].anchors
    held_out = {SET_NAMES[name]: clips for name, clips in sets.items() if name != "train"}
    count = len(anchors) if isinstance(anchors, list) else 1
    return Bundle(
        train_dataset=sets["train"],
        eval_datasets={name: clips for name, clips in held_out.items() if name == "validation"},
        test_datasets={name: clips for name, clips in held_out.items() if name == "test"},
        collate=collate,
        sampler=functools.partial(ClipSampler, len(sets["train"])),
        dims={
            "crop_size": side,
            "anchors": count,
            "channels": config.channels * count if config.images else 0,
            "clip_length": splits["train"].clip_length,
        },
        units={"clips": 1},
        files={"data.json": identity(sets)},
        summary=summary(sets),
    )


def open_recordings(config: Config, split: Split, name: str, run: Any) -> list[Recording]:
    """The recordings of a section, each checked against its video."""
    sources = find_sources(split, f"dataset.{name}_dataset", config.images)
    anchors = (split.anchors,) if isinstance(split.anchors, str) else tuple(split.anchors)
    recordings = []
    for source in sources:
        sequence = readers()[source.labels.suffix](source.labels)
        video = open_video(source.video, config.channels) if source.video is not None else None
        cutter = Cutter(split.crop_size, split.padding, anchors, split.handle_missing, split.dilation_radius_px)
        recording = Recording(
            source.name,
            sequence,
            video,
            cutter,
            video.size if video is not None else sequence.size or sequence.extent(),
            0,
            len(video) if video is not None else sequence.length or sequence.stop,
            seed=(run.seed, len(recordings)),
            scramble=config.scramble != "none",
        )
        recordings.append(with_crops(recording, Path(run.cache_dir) / "tracks") if video is not None else recording)
    return recordings


def with_crops(recording: Recording, root: Path) -> Recording:
    """The recording with its crops from the cache, cut now if they are not there yet."""
    video, sequence = recording.video, recording.sequence
    described = {
        "version": VERSION,
        "cutter": vars(recording.cutter),
        "labels": file_identity(sequence.source, sequence.source.name),
        "video": [file_identity(path, path.name) for path in video.files()],
        "channels": video.channels,
    }
    folder, _ = open_or_build(root, key_of(described), functools.partial(cut_all, recording=recording))
    import dataclasses

    return dataclasses.replace(recording, crops=CachedCrops(str(folder / "crops.npy")))


def cut_all(folder: Path, recording: Recording) -> dict[str, Any]:
    """Write the crops of all rows to crops.npy; rows without one stay black."""
    cutter, sequence, video = recording.cutter, recording.sequence, recording.video
    shape = (len(sequence), len(cutter.anchors) * video.channels, *[cutter.side or cutter.box_side] * 2)
    require_disk(folder, int(np.prod(shape)), f"a cache of {len(sequence):,} crops")
    array = np.lib.format.open_memmap(folder / "crops.npy", mode="w+", dtype=np.uint8, shape=shape)
    for frame in recording.labelled():
        array[frame.rows] = frame.crops
    array.flush()
    return {}


def hold_out(recordings: list[Recording], frames: int | float) -> tuple[list[Recording], list[Recording]]:
    """(the first frames of each recording, its last ones)"""
    kept, held_out = [], []
    for recording in recordings:
        count = frames if isinstance(frames, int) else round(frames * len(recording))
        middle = recording.stop - count
        kept.append(recording.part(recording.start, middle))
        held_out.append(recording.part(middle, recording.stop))
    return kept, held_out


def identity(sets: dict[str, Clips]) -> dict[str, Any]:
    """What tells this data from other: saved with every checkpoint, so that a resumed run can see a change."""
    return {
        name: [
            [recording.name, recording.start, recording.stop, len(recording.sequence)] for recording in clips.videos()
        ]
        for name, clips in sets.items()
    }


def summary(sets: dict[str, Clips]) -> list[str]:
    lines = []
    for name, clips in sets.items():
        videos = clips.videos()
        frames = sum(map(len, videos))
        instances = sum(len(video.sequence.frames[video.sequence.within(video.start, video.stop)]) for video in videos)
        lines.append(
            f"{SET_NAMES.get(name, 'training')}: {len(videos)} videos, {frames:,} frames, {instances:,} instances, "
            f"{len(clips):,} clips"
        )
    return lines
