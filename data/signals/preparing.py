"""Prepare recordings: a memory-mapped array for each file under $KEEL_HOME, made a block at a time.

What depends on other recordings (which channels there are, standardising) is applied when windows are read, so that a
file is prepared once, whatever it is trained with. An interrupted preparation goes on with the files that it lacks.

Shapes: N samples of all recordings of a file one after the other, C channels.
"""

from __future__ import annotations

import fnmatch
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from data.cache import file_identity, key_of, open_or_build, read_manifest, require_disk
from data.signals.pipeline import processed, ratio_of, sections_of
from data.signals.recording import Recording, first_part, naming, open_recordings
from storage import worker_pool

VERSION = 3  # of what is kept in the cache
FILE = "signal.f32"
BLOCK_VALUES = 2**20  # float64 values of a block; a few copies of it are all the memory that preparing takes
SMALL = 2**25  # bytes; less is not worth starting processes for
LARGEST = float(np.finfo(np.float32).max)  # what is beyond, such as infinity, counts as NaN
BAD = "BAD"  # MNE: an annotation that begins so marks what is not to be used
# Keys of the configuration that decide what is in the array.
KEYS = ("channels", "rename", "sampling_rate", "resample", "highpass", "lowpass", "notch", "reference", "label_column")


@dataclass
class Part:
    """One recording in the array of its file: rows `start` to `stop`.

    Attributes:
        stretches: Rows between gaps, without those that are marked as bad, [first, end].
        missing_rows: Of each channel the runs of rows in which it has NaN, [first, end].
        missing: NaN of each channel.
        low, high: Least and largest value of each channel; NaN if it has none.
        events: [row, rows, description].
    """

    name: str
    start: int
    stop: int
    stretches: list[list[int]]
    missing_rows: list[list[list[int]]]
    missing: list[int]
    low: list[float]
    high: list[float]
    events: list[list[Any]]
    label: str | None
    session: str | None
    subject: str | None


@dataclass
class Prepared:
    """The recordings of one file; rows of all of them one after the other."""

    source: str
    path: str
    channels: list[str]
    types: list[str | None]
    positions: list[list[float] | None]
    rate: float | None
    rows: int
    parts: list[Part]
    notes: list[str]

    def array(self) -> np.ndarray:
        """(N, C) float32 in the file's units, NaN where missing; memory-mapped once a process."""
        return open_array(self.path, self.rows, len(self.channels))

    def flat(self) -> list[int]:
        """Numbers of the channels that are constant, or have no value, in all of the file."""
        low, high = (np.array([getattr(part, name) for part in self.parts]) for name in ("low", "high"))
        return np.flatnonzero(~(np.fmax.reduce(high) > np.fmin.reduce(low))).tolist()


@lru_cache(maxsize=256)
def open_array(path: str, rows: int, channels: int) -> np.ndarray:
    return np.asarray(np.memmap(path, np.float32, "r", shape=(rows, channels)))  # its slices are cheaper


def prepare(files: list[Path], settings: dict[str, Any], cache: Path, workers: int | None) -> list[Prepared]:
    """Prepare files of recordings, those not yet prepared in parallel.

    Args:
        settings: The configuration's `KEYS`.

    Raises:
        ValueError: a file cannot be read or its channels or rates do not fit the settings.
    """
    identities = [[file_identity(part, part.name) for part in files_of(file)] for file in files]
    keys = [key_of({"version": VERSION, "files": identity, **settings}) for identity in identities]
    waiting = [file for file, key in zip(files, keys, strict=True) if read_manifest(cache / key) is None]
    workers = min(workers or os.cpu_count() or 1, len(waiting))
    if workers < 2 or sum(part.stat().st_size for file in waiting for part in files_of(file)) <= SMALL:
        workers = 0
    start = partial(preparer, settings, cache)
    return [result for _, result in worker_pool.run(start, zip(files, keys, strict=True), workers)]


def preparer(settings: dict[str, Any], cache: Path) -> Callable[[tuple[Path, str]], Prepared]:
    """(file, its key in the cache) -> the prepared file; called once in each process."""
    return lambda task: prepared_file(*task, settings, cache)


def prepared_file(file: Path, key: str, settings: dict[str, Any], cache: Path) -> Prepared:
    folder, manifest = open_or_build(cache, key, partial(write_file, file=file, settings=settings))
    parts = [Part(**part) for part in manifest["parts"]]
    described = {name: manifest[name] for name in ("channels", "types", "positions", "rate", "rows", "notes")}
    return Prepared(str(file), str(folder / FILE), parts=parts, **described)


def write_file(folder: Path, file: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Write the array of a file; returns the manifest."""
    recordings = open_recordings(file, settings["label_column"])
    parts, rows, first = [], 0, None
    with (folder / FILE).open("wb") as stream, naming(file):
        for recording in recordings:
            plan = Plan(recording, settings)
            first = first or plan
            if plan.channels != first.channels or plan.rate != first.rate:
                raise ValueError(f"{recording.name}: other channels or another rate than {recordings[0].name}")
            require_disk(folder, round(4 * recording.length * len(plan.channels) * plan.up / plan.down), file.name)
            parts.append(write_recording(stream, rows, recording, plan))
            rows = parts[-1].stop
    return {
        **{name: getattr(first, name) for name in ("channels", "types", "positions", "rate")},
        "rows": rows,
        "parts": [asdict(part) for part in parts],
        "notes": [note for recording in recordings for note in recording.notes],
    }


class Plan:
    """What is done to a recording: which channels are kept, the reference, the filters, the new rate."""

    def __init__(self, recording: Recording, settings: dict[str, Any]):
        rename = settings["rename"] or {}
        names = [rename.get(name, name) for name in recording.channels]
        types = list(recording.types or [None] * len(names))
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"{recording.name}: dataset.rename gives two channels the name {twice}")
        self.picked = pick(recording.name, names, types, settings["channels"])
        self.channels = [names[number] for number in self.picked]
        self.types = [types[number] for number in self.picked]
        positions = list(recording.positions or [None] * len(names))
        self.positions = [positions[number] for number in self.picked]
        self.reference, self.referenced = reference_of(recording.name, names, types, settings["reference"])
        rate = recording.rate or settings["sampling_rate"]
        self.sections = sections_of(rate, settings["highpass"], settings["lowpass"], settings["notch"])
        self.up = self.down = 1
        if settings["resample"]:
            if rate is None:
                raise ValueError(f"{recording.name} does not say its rate; set dataset.sampling_rate")
            self.up, self.down = ratio_of(rate, settings["resample"])
        self.rate = settings["resample"] or rate

    def __call__(self, recording: Recording, start: int, stop: int) -> Iterator[np.ndarray]:
        """The blocks (C, n) of samples `start` to `stop`, processed."""
        size = max(1, BLOCK_VALUES // len(recording.channels))
        bounds = range(start, stop, size)
        blocks = (self.referred(recording.read(first, min(first + size, stop))) for first in bounds)
        return processed(blocks, self.sections, self.up, self.down)

    def referred(self, block: np.ndarray) -> np.ndarray:
        is_known = np.abs(block) <= LARGEST
        block = block if is_known.all() else np.where(is_known, block, np.nan)
        if self.reference:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # where all of them are missing: NaN
                mean = np.nanmean(block[self.reference], 0)
            block = block.copy()  # it may be a part of the reader's array
            block[self.referenced] -= mean
        return block[self.picked] if len(self.picked) < len(block) else block


def pick(name: str, names: list[str], types: list[str | None], wanted: list[str] | None) -> list[int]:
    """Numbers of the channels that are wanted, in the order of `wanted`.

    Raises:
        ValueError: an entry is no channel's name, pattern or type.
    """
    if wanted is None:
        return list(range(len(names)))
    picked = []
    for entry in wanted:
        fits = [n for n, channel in enumerate(names) if entry == types[n] or fnmatch.fnmatchcase(channel, entry)]
        if not fits and names.count(entry):
            fits = [names.index(entry)]  # a name with brackets, which a pattern reads otherwise
        picked += [number for number in fits if number not in picked]
    if not picked:
        raise ValueError(f"{name} has none of dataset.channels {', '.join(wanted)}; it has {', '.join(names[:20])}")
    return picked


def reference_of(
    name: str, names: list[str], types: list[str | None], reference: str | list[str] | None
) -> tuple[list[int], list[int]]:
    """Numbers of the channels whose mean is subtracted, and of those it is subtracted from: EEG, or all if none is."""
    if reference is None:
        return [], []
    referenced = [number for number, kind in enumerate(types) if kind == "eeg"] or list(range(len(names)))
    if reference == "average":
        return referenced, referenced
    wanted = [reference] if isinstance(reference, str) else reference
    absent = [channel for channel in wanted if channel not in names]
    if absent:
        raise ValueError(f"{name} has no channel {absent[0]} (dataset.reference); it has {', '.join(names[:20])}")
    return [names.index(channel) for channel in wanted], referenced


def write_recording(stream: Any, start: int, recording: Recording, plan: Plan) -> Part:
    """Append a recording's samples to the array."""
    count = len(plan.channels)
    low, high, missing = np.full(count, np.nan), np.full(count, np.nan), np.zeros(count, np.int64)
    row, stretches, runs = start, [], [[] for _ in range(count)]
    bounds = [0, *(point for point in recording.breaks if 0 < point < recording.length), recording.length]
    for first, stop in zip(bounds, bounds[1:], strict=False):
        stretches.append([row, row])
        for block in plan(recording, first, stop):
            mask = np.isnan(block)
            missing += mask.sum(1)
            low, high = np.fmin(low, np.fmin.reduce(block, 1)), np.fmax(high, np.fmax.reduce(block, 1))
            for channel in np.flatnonzero(mask.any(1)):
                add_runs(runs[channel], row, mask[channel])
            stream.write(np.ascontiguousarray(block.T, np.float32).tobytes())
            row += block.shape[1]
        stretches[-1][1] = row
    rate = (recording.rate or 1.0) * plan.up / plan.down
    events = [[start + round(e.onset * rate), round(e.duration * rate), e.description] for e in recording.events]
    bad = [[row, row + rows] for row, rows, text in events if text.upper().startswith(BAD)]
    return Part(
        name=recording.name,
        start=start,
        stop=row,
        stretches=without(stretches, bad),
        missing_rows=runs,
        missing=missing.tolist(),
        low=low.tolist(),
        high=high.tolist(),
        events=events,
        label=recording.label,
        session=recording.session,
        subject=recording.subject,
    )


def add_runs(runs: list[list[int]], row: int, mask: np.ndarray) -> None:
    """Append the runs of true values of a block that begins at `row`."""
    edges = np.flatnonzero(np.diff(mask, prepend=False, append=False)).tolist()
    for first, end in zip(edges[::2], edges[1::2], strict=True):
        if runs and runs[-1][1] == row + first:
            runs[-1][1] = row + end
        else:
            runs.append([row + first, row + end])


def without(stretches: list[list[int]], removed: list[list[int]]) -> list[list[int]]:
    """The parts of stretches outside the removed rows, which may overlap."""
    low, high = np.array(sorted(removed), np.int64).reshape(-1, 2).T
    high = np.maximum.accumulate(high)
    pieces = []
    for first, stop in stretches:
        inside = slice(np.searchsorted(high, first, "right"), np.searchsorted(low, stop))
        starts, ends = [first, *high[inside].tolist()], [*low[inside].tolist(), stop]
        pieces += [[start, end] for start, end in zip(starts, ends, strict=True) if start < end]
    return pieces


def files_of(file: Path) -> list[Path]:
    """A recording's files: all of a folder's; those beside a header that have its stem or stand in its text."""
    if file.is_dir():
        return sorted(part for part in file.iterdir() if part.is_file())
    if not file.exists():
        return []
    if file.suffix.lower() in (".hea", ".vhdr"):
        text, beside = file.read_text(encoding="latin-1"), sorted(file.parent.iterdir())
        return [part for part in beside if (part.stem == file.stem or part.name in text) and part.is_file()]
    if file.suffix.lower() == ".fif":
        return [part for part in sorted(file.parent.glob("*.fif")) if file.name in (part.name, first_part(part.name))]
    return [file]
