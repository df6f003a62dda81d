"""From labels and videos to a `Bundle`: recordings, held-out frames, crops in a cache, clips."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.bundle import Bundle
from data.tracks.augment import Augment
from data.tracks.clips import Clips, ClipSampler, Windows, collate, cut
from data.tracks.config import Config, Split
from data.tracks.crops import FILE, Cutter
from data.tracks.find import find_sources
from data.tracks.open_recording import open_recording, with_cached_crops
from data.tracks.recording import Recording
from data.tracks.report import Report
from data.tracks.scoring import TrackingMetric
from data.tracks.sequence import UNKNOWN

SET_NAMES = {"train": "training", "val": "validation", "test": "test"}


def assemble(config: Config, run: Any) -> Bundle:
    """See `data.tracks.build`."""
    splits = {name: config.split(name) for name in SET_NAMES}
    side = max(sizes_of(splits["train"])) + 2 * splits["train"].padding
    recordings = {name: open_all(config, split, name, side) for name, split in splits.items() if split.has_source}
    if "val" not in recordings and config.val_frames:
        recordings["train"], recordings["val"] = hold_out(recordings["train"], config.val_frames)
        recordings["val"] = [
            dataclasses.replace(recording, cutter=cutter_of(splits["val"], recording.number, side))
            for recording in recordings["val"]
        ]
    sets = {name: data_set(config, splits[name], name, parts, run) for name, parts in recordings.items()}
    held_out = {SET_NAMES[name]: data for name, data in sets.items() if name != "train"}
    count, longest = recordings["train"][0].cutter.count, max(map(len, recordings["train"]))
    return Bundle(
        train_dataset=sets["train"],
        eval_datasets={name: data for name, data in held_out.items() if name == "validation"},
        test_datasets={name: data for name, data in held_out.items() if name == "test"},
        collate=collate,
        sampler=functools.partial(ClipSampler, len(sets["train"])),
        dims={
            "crop_size": side,
            "anchors": count,
            "channels": config.channels * count if config.images else 0,
            "clip_length": splits["train"].clip_length if splits["train"].chunk else longest,
        },
        metrics={name: TrackingMetric(config.tracker) for name, data in held_out.items() if isinstance(data, Windows)},
        units={"clips": 1},
        files={"data.json": identity(sets), FILE: description(config, splits["train"], side)},
        summary=summary(sets),
        report=Report(config.tracker),
    )


def sizes_of(split: Split) -> list[int]:
    return split.crop_size if isinstance(split.crop_size, list) else [split.crop_size]


def cutter_of(split: Split, number: int, side: int) -> Cutter:
    """The cutter of the folder or file with this number in a section's list."""
    anchors = (split.anchors,) if isinstance(split.anchors, str) else split.anchors
    anchors = anchors if isinstance(anchors, int) else tuple(anchors)
    size = split.crop_size[number] if isinstance(split.crop_size, list) else split.crop_size
    return Cutter(size, split.padding, anchors, split.handle_missing, split.dilation_radius_px, side)


def open_all(config: Config, split: Split, name: str, side: int) -> list[Recording]:
    """The recordings of a section, as the labels have them."""
    size = None if config.image_size is None else tuple(config.image_size)
    recordings = [
        open_recording(source, cutter_of(split, source.number, side), config.channels, size)
        for source in find_sources(split, f"dataset.{name}_dataset", config.images)
    ]
    for recording in recordings:
        recording.sequence.check_identities()
    return recordings


def hold_out(recordings: Sequence[Recording], frames: int | float) -> tuple[list[Recording], list[Recording]]:
    """(the first frames of each recording, its last ones)

    Args:
        frames: To be held out: a number, or a share; a video of which it is less than half a frame is kept as a whole.

    Raises:
        ValueError: No frame of a video is left to train on, or no frame of any is held out.
    """
    kept, held_out = [], []
    for recording in recordings:
        stop = recording.stop - (frames if isinstance(frames, int) else round(frames * len(recording)))
        if stop == recording.stop:
            note = f"{recording.name}: {len(recording)} frames are too few to hold out a share of {frames}"
            sequence = dataclasses.replace(recording.sequence, notes=(*recording.sequence.notes, note))
            recording = dataclasses.replace(recording, sequence=sequence)
        else:
            held_out.append(recording.part(stop, recording.stop))
        kept.append(recording.part(recording.start, stop))
    empty = next((recording for recording in kept if recording.start >= recording.stop), None)
    if empty is not None or not held_out:
        problem = "none to hold out" if empty is None else f"none of {empty.name} to train on"
        raise ValueError(f"dataset.val_frames: {frames} leaves {problem}; change it")
    return kept, held_out


def data_set(config: Config, split: Split, name: str, recordings: Sequence[Recording], run: Any) -> Clips:
    """Clips for the loss, or every frame for scores."""
    augment = Augment(split.augmentations) if split.augmentations else None
    prepared = []
    for number, recording in enumerate(recordings):
        if set(split.augmentations or ()) <= {"InstanceDropout"}:  # which leaves the crops in the cache as they are
            recording = with_cached_crops(recording, Path(run.cache_dir) / "tracks", config.cache_gb * 1e9)
        options = {"augment": augment, "seed": (run.seed, number), "scramble": config.scramble != "none"}
        prepared.append(dataclasses.replace(recording, **options))
    clip_length = split.clip_length if split.chunk else None
    if name != "train" and split.mode == "val":
        parts = [recording.part(*bounds) for recording in prepared for bounds in cut(recording, clip_length)]
        data: Clips = Windows(
            [parts[place] for place in chosen(len(parts), split.n_chunks, run.seed)], config.tracker.context
        )
    else:
        data = Clips(prepared, clip_length, run.seed, per_epoch=name == "train" and split.mode == "train")
        data.keep(chosen(len(data), split.n_chunks, run.seed))
    if not len(data):
        raise ValueError(without_targets(recordings, f"dataset.{name}_dataset"))
    return data


def chosen(total: int, wanted: int | float | None, seed: int) -> list[int]:
    """Places of the clips that `n_chunks` leaves, drawn once."""
    if wanted is None:
        return list(range(total))
    count = min(total, wanted) if isinstance(wanted, int) else max(1, round(wanted * total))
    return sorted(np.random.default_rng(seed).permutation(total)[:count].tolist())


def without_targets(recordings: Sequence[Recording], section: str) -> str:
    known = any((recording.sequence.identities != UNKNOWN).any() for recording in recordings)
    problem = (
        "no identity is in two frames; raise clip_length or val_frames" if known else "no instance has an identity"
    )
    return f"{section}: {problem} ({recordings[0].sequence.source})"


def description(config: Config, split: Split, side: int) -> dict[str, Any]:
    """What `predict.py` needs to cut crops as in training; of several crop sizes the largest."""
    cutter = dataclasses.asdict(cutter_of(dataclasses.replace(split, crop_size=max(sizes_of(split))), 0, side))
    anchors = cutter["anchors"] if isinstance(cutter["anchors"], int) else list(cutter["anchors"])
    return {**cutter, "anchors": anchors, "channels": config.channels, "images": config.images}


def identity(sets: dict[str, Clips]) -> dict[str, Any]:
    """What identifies this data: saved with every checkpoint, so that a resumed run detects a change."""
    return {
        name: [[video.name, video.start, video.stop, len(video.sequence)] for video in data.videos()]
        for name, data in sets.items()
    }


def summary(sets: dict[str, Clips]) -> list[str]:
    lines = []
    for name, data in sets.items():
        videos = data.videos()
        instances = [video.sequence.within(video.start, video.stop) for video in videos]
        identities = sum(
            len(set(video.sequence.identities[part].tolist()) - {UNKNOWN})
            for video, part in zip(videos, instances, strict=True)
        )
        counts = {"videos": len(videos), "frames": sum(map(len, videos))}
        counts |= {"instances": sum(part.stop - part.start for part in instances)}
        counts |= {"identities": identities, "samples": len(data)}
        lines.append(f"{SET_NAMES[name]}: {', '.join(f'{count:,} {what}' for what, count in counts.items())}")
    return [
        *dict.fromkeys(note for data in sets.values() for video in data.videos() for note in video.sequence.notes),
        *lines,
    ]
