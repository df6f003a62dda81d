"""Which channels a batch has, and in which column of each file they are.

Shapes: C channels of a batch.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.signals.config import Config
from data.signals.preparing import Prepared

POSITION_DIGITS = 4  # equal positions and types to so many decimals are one channel
SHOWN = 8  # channels in a message


@dataclass
class Alignment:
    """The channels of a batch.

    Attributes:
        names, types: Of the C channels.
        columns: For each file the columns of the C channels; -1 where it lacks one.
    """

    names: list[str]
    types: list[str | None]
    columns: list[np.ndarray]


def align(files: Sequence[Prepared], trained: int, config: Config) -> tuple[Alignment, list[str]]:
    """Merge the channels of files, of which the first `trained` are for training; returns lines for people too.

    Raises:
        ValueError: channels, rates or values that the configuration does not allow for.
    """
    check_rates(files)
    notes = [*check_names(files, config), *check_missing(files, config)]
    keyed = []  # for each file: what makes a channel the same in other files -> its column
    described, flat_keys = {}, set()  # key -> name and type, of the first file that has the channel
    for file in files:
        keys = keys_of(file, config.merge_by)
        flat = flat_channels(file, config)
        flat_keys |= {keys[column] for column in flat}
        keyed.append({key: column for column, key in enumerate(keys) if column not in flat})
        described = {key: (file.channels[column], file.types[column]) for column, key in enumerate(keys)} | described
        if flat:
            constant = [file.channels[column] for column in flat]
            notes.append(f"{file.source}: constant in all of it: {listed(constant)}")
    chosen = list(dict.fromkeys(key for columns in keyed[:trained] for key in columns))
    if config.flat == "drop":
        chosen = [key for key in chosen if key not in flat_keys]
    if config.missing == "drop":
        chosen = [key for key in chosen if all(key in columns for columns in keyed)]
    if not chosen:
        raise ValueError("no channel is in all recordings; set dataset.missing: fill, or name dataset.channels")
    for file, columns in zip(files, keyed, strict=True):
        further = [described[key][0] for key in columns if key not in chosen and key not in flat_keys]
        lacking = [described[key][0] for key in chosen if key not in columns and key not in flat_keys]
        if config.missing == "error" and (further or lacking):
            differs = f"lacks {listed(lacking)}, which others have" if lacking else f"also has {listed(further)}"
            remedy = "set dataset.channels to those all recordings have, or dataset.missing to fill or drop"
            raise ValueError(f"{file.source} {differs}; {remedy}")
    names, types = zip(*(described[key] for key in chosen), strict=True)
    aligned = [np.array([columns.get(key, -1) for key in chosen]) for columns in keyed]
    return Alignment(list(names), list(types), aligned), notes


def keys_of(file: Prepared, merge_by: str) -> list[tuple]:
    """What makes channels of different files the same; several channels of one position and type are numbered."""
    keys: list[tuple] = []
    for name, kind, position in zip(file.channels, file.types, file.positions, strict=True):
        key = ("name", name)
        if merge_by == "position" and position is not None:
            key = (tuple(round(value, POSITION_DIGITS) + 0.0 for value in position), kind)
        keys.append((*key, sum(other[: len(key)] == key for other in keys)))
    return keys


def check_names(files: Sequence[Prepared], config: Config) -> list[str]:
    """Lines with names in `rename` that no recording has.

    Raises:
        ValueError: an entry of `channels` is in no recording.
    """
    names = {name for file in files for name in file.channels}
    types = {kind for file in files for kind in file.types}
    for entry in config.channels or ():
        if entry not in names | types and not any(fnmatch.fnmatchcase(name, entry) for name in names):
            raise ValueError(f"dataset.channels: {entry} is no channel, pattern or type of any recording; leave it out")
    reference = [config.reference] if isinstance(config.reference, str) else config.reference or []
    unused = [old for old, new in (config.rename or {}).items() if new not in (*names, *reference)]
    return [f"dataset.rename: no recording has {listed(unused)}, of the channels that are kept"] if unused else []


def check_rates(files: Sequence[Prepared]) -> None:
    """Raise ValueError if sampling rates differ."""
    rates = {}
    for file in files:
        rates.setdefault(file.rate, file.source)
    if len(rates) > 1:
        shown = ", ".join(f"{source} {'unknown' if rate is None else f'{rate:g} Hz'}" for rate, source in rates.items())
        raise ValueError(f"sampling rates differ: {shown}; set dataset.resample (and sampling_rate, where unknown)")


def check_missing(files: Sequence[Prepared], config: Config) -> list[str]:
    """Lines with the counts of NaN.

    Raises:
        ValueError: there are some, and `nan` is `error`.
    """
    notes = []
    for file in files:
        counts = np.sum([part.missing for part in file.parts], 0)
        counts[file.flat()] = 0  # channels without any value
        worst, channels = int(np.argmax(counts)), np.count_nonzero(counts)
        if channels:
            line = f"{file.source}: {counts.sum():,} NaN in {file.rows:,} samples of {channels} channels"
            if config.nan == "error":
                raise ValueError(f"{line}, most in {file.channels[worst]}; set dataset.nan to fill or drop")
            notes.append(f"{line}: {config.nan} (dataset.nan)")
    return notes


def flat_channels(file: Prepared, config: Config) -> list[int]:
    """Numbers of channels that are constant in a file.

    Raises:
        ValueError: there are some, and `flat` is `error`.
    """
    flat = file.flat()
    if flat and config.flat == "error":
        names, remedy = listed([file.channels[column] for column in flat]), "set dataset.flat to fill or drop"
        raise ValueError(f"{file.source}: constant in all of it: {names}; {remedy}, or leave out the channels")
    return flat


def listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
