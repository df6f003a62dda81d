"""Which rows of which recordings train, validate and test."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data.signals.config import Config, DataSplitter
from data.signals.preparing import Part, Prepared, without

HELD_OUT = ("eval", "test")


@dataclass(frozen=True)
class Stretch:
    """Rows `start` to `stop` of a file's array without a gap, of one recording."""

    file: int
    part: int
    start: int
    stop: int


@dataclass(frozen=True)
class Origin:
    """Where a recording is from."""

    session: str
    subject: str | None
    dataset: str


def common_folder(entries: Iterable[tuple[str, Path]]) -> str:
    """The folder that paths of recordings are named below: the entry of `dataset.path`, or what several have in common.

    Args:
        entries: (entry, file that it names).
    """
    roots = set()
    for entry, file in entries:
        root = os.path.abspath(os.path.expanduser(entry))
        roots.add(os.path.dirname(root) if root == os.path.abspath(file) else root)
    return os.path.commonpath(roots)


def origin_of(file: Prepared, part: Part, entry: str, folder: str, splitter: DataSplitter) -> Origin:
    """By what the file says, else by the patterns in its path below `common_folder`."""
    path = Path(os.path.abspath(file.source))
    within = Path(os.path.relpath(path, folder)).as_posix()
    recording = f"{within}{part.name.removeprefix(path.name)}"  # a trial: FILE#3
    session, subject = (re.search(pattern, within) for pattern in (splitter.session_pattern, splitter.subject_pattern))
    if part.session is not None:  # its folder; what is kept of the file may be of a time when that had another name
        session_name = Path(within).parent.as_posix() if "/" in within else path.parent.name
    else:
        session_name = recording if session is None else session[1]
    dataset = Path(entry).expanduser().absolute().stem
    return Origin(session_name, part.subject or (None if subject is None else subject[1]), dataset)


def stretches_of(files: Sequence[Prepared], columns: Sequence[np.ndarray], nan: str) -> list[Stretch]:
    """All stretches, in order; rows in which one of the `columns` of a file has NaN are gaps if `nan` is `drop`."""
    stretches = []
    for number, file in enumerate(files):
        used = [column for column in columns[number].tolist() if column >= 0]
        for index, part in enumerate(file.parts):
            removed = [run for column in used for run in part.missing_rows[column]] if nan == "drop" else []
            stretches += [Stretch(number, index, *span) for span in without(part.stretches, removed)]
    return stretches


def split(
    stretches: list[Stretch],
    files: Sequence[Prepared],
    origins: dict[tuple[int, int], Origin],
    config: Config,
    seed: int,
    is_trials: bool,
) -> dict[str, list[Stretch]]:
    """`train`, and `eval` and `test` if something is held out of `stretches`.

    Args:
        origins: Of (file, part), of those that the stretches are from.

    Raises:
        ValueError: a side would be empty.
    """
    splitter = config.datasplitter
    splitter = replace(
        splitter,
        eval_fraction=0.0 if config.eval_path or splitter.eval else splitter.eval_fraction,
        test_fraction=0.0 if config.test_path or splitter.test else splitter.test_fraction,
    )
    by = splitter.by or ("session" if is_trials else "time")
    if by == "time":
        sides = by_time(stretches, files, splitter)
    else:
        keys = {place: getattr(origin, by) for place, origin in origins.items()}
        unknown = next((files[file].source for (file, _), key in keys.items() if key is None), None)
        if unknown is not None:
            raise ValueError(f"{unknown} has no subject; set dataset.datasplitter.subject_pattern")
        held_out = sides_of(sorted(set(keys.values())), by, splitter, seed)
        sides = {name: [] for name in ("train", *HELD_OUT)}
        for stretch in stretches:
            sides[held_out.get(keys[stretch.file, stretch.part], "train")].append(stretch)
    wanted = {
        "train": True,
        "eval": splitter.eval or splitter.eval_fraction,
        "test": splitter.test or splitter.test_fraction,
    }
    for name, is_wanted in wanted.items():
        if is_wanted and not sides[name]:
            raise ValueError(f"dataset.datasplitter leaves no recording for {name}; change its fractions or `by: {by}`")
    return {name: side for name, side in sides.items() if side}


def by_time(stretches: list[Stretch], files: Sequence[Prepared], splitter: DataSplitter) -> dict[str, list[Stretch]]:
    """The end of each recording tests, what is before it validates, each after a gap."""
    sides: dict[str, list[Stretch]] = {name: [] for name in ("train", *HELD_OUT)}
    for stretch in stretches:
        file = files[stretch.file]
        part = file.parts[stretch.part]
        if splitter.gap_seconds and file.rate is None:
            raise ValueError(f"{file.source} does not say its rate, which gap_seconds needs; set dataset.sampling_rate")
        rows, gap = part.stop - part.start, round(splitter.gap_seconds * (file.rate or 0))
        test = part.stop - round(rows * splitter.test_fraction)
        validation = test - round(rows * splitter.eval_fraction)
        bounds = {"train": (part.start, validation), "eval": (validation + gap, test), "test": (test + gap, part.stop)}
        for name, (first, end) in bounds.items():
            start, stop = max(first, stretch.start), min(end, stretch.stop)
            if start < stop:
                sides[name].append(replace(stretch, start=start, stop=stop))
    return sides


def sides_of(keys: list[str], by: str, splitter: DataSplitter, seed: int) -> dict[str, str]:
    """Session, subject or data set -> eval or test; named, or drawn."""
    sides = {}
    for name in HELD_OUT:
        for key in getattr(splitter, name) or ():
            if key not in keys:
                raise ValueError(f"dataset.datasplitter.{name}: no {by} {key}; there are {', '.join(keys[:20])}")
            if sides.setdefault(key, name) != name:
                raise ValueError(f"dataset.datasplitter: {key} is in eval and in test; name it once")
    left = [key for key in keys if key not in sides]
    drawn = np.random.default_rng(seed).permutation(left).tolist()
    for name in HELD_OUT:
        share = getattr(splitter, f"{name}_fraction")
        for _ in range(max(1, round(share * len(keys))) if share else 0):
            if len(drawn) > 1:  # one is left to train on
                sides[drawn.pop()] = name
    return sides
