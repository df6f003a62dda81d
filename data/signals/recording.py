"""A recording: channels sampled evenly in time, read a block at a time; and where to find the reader of a file.

Shapes: C channels, n samples of a block.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data.files import files_below
from storage.safe_read import printable

# Ending of a file -> the module here that reads it: `read(path, label_column) -> list[Recording]`.
READERS = {
    "read_biosignals": (".edf", ".bdf", ".fif", ".fif.gz", ".vhdr", ".sqd", ".con", ".hea"),
    "read_tables": (".csv", ".tsv", ".parquet"),
    "read_arrays": (".npy", ".npz"),
    "read_archive": (".ts", ".arff"),
}
SUFFIXES = tuple(suffix for suffixes in READERS.values() for suffix in suffixes)
# What the readers of MNE, wfdb, pyarrow and NumPy raise for a damaged file, and ours for what they do not read.
OF_DAMAGED_FILES = (ValueError, OSError, EOFError, RuntimeError, LookupError, AttributeError, TypeError, AssertionError,
                    struct.error, pickle.UnpicklingError, zipfile.BadZipFile)  # fmt: skip
BTI_DATA = ("c,rfDC", "c,rfhp0.1Hz", "c,rfhp1.0Hz")  # a recording of BTi is a folder with one of these and a config
# Tables that describe the recordings of a BIDS folder; they are no recordings.
TABLES_OF_BIDS = (
    "participants.tsv",
    *(f"_{kind}.tsv" for kind in ("channels", "electrodes", "events", "scans", "sessions")),
)
MOST_CHANNELS = 4096  # more, with fewer samples, are an array (samples, channels)


@dataclass(frozen=True)
class Event:
    """An annotation: `onset` and `duration` in seconds from the recording's first sample; in samples without a rate."""

    onset: float
    duration: float
    description: str


@dataclass
class Recording:
    """One recording, or one trial of a file of trials.

    Attributes:
        read: (start, stop) -> (C, n) float64 in the file's units; called for growing starts.
        rate: Samples a second; None: the file does not say.
        positions: Of each channel, of any dimension; None: unknown.
        breaks: Samples before which time is missing.
        label: Class of a trial.
        session, subject: Where the file says; None: by its path.
        notes: What was left out, for people.
    """

    name: str
    channels: list[str]
    length: int
    read: Callable[[int, int], np.ndarray]
    rate: float | None = None
    types: Sequence[str] | None = None
    positions: Sequence[Sequence[float] | None] | None = None
    events: list[Event] = field(default_factory=list)
    breaks: list[int] = field(default_factory=list)
    label: str | None = None
    session: str | None = None
    subject: str | None = None
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if len(set(self.channels)) < len(self.channels):
            twice = next(name for name in self.channels if self.channels.count(name) > 1)
            raise ValueError(f"{self.name}: two channels have the name {twice}; rename one in the file")
        if not self.channels or self.length < 1:
            raise ValueError(f"{self.name}: no samples in it")
        if len(self.channels) > max(self.length, MOST_CHANNELS):
            shape = f"{len(self.channels):,} channels of {self.length:,} samples"
            raise ValueError(f"{self.name}: {shape}; an array is (channels, samples): transpose it")


def of_array(name: str, array: np.ndarray, channels: Sequence[str] | None = None, **more: object) -> Recording:
    """A recording of an array (C, T) in memory; channels without names are ch0, ch1 …"""
    names = [f"ch{index}" for index in range(len(array))] if channels is None else list(map(str, channels))
    if len(names) != len(array):
        raise ValueError(f"{name}: {len(names)} channel names for an array {array.shape} of (channels, samples)")
    return Recording(name, names, array.shape[1], lambda a, b: np.asarray(array[:, a:b], np.float64), **more)


def open_recordings(path: Path, label_column: str | None = None) -> list[Recording]:
    """The recordings of a file.

    Raises:
        ValueError: the file is damaged or of another kind, one line.
    """
    module = "read_biosignals" if path.is_dir() else next((m for m, s in READERS.items() if _ends(path.name, s)), None)
    if module is None:
        raise ValueError(f"{printable(str(path))} is no recording; there are {', '.join(SUFFIXES)} and folders of BTi")
    with naming(path):
        return importlib.import_module(f"data.signals.{module}").read(path, label_column)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn what a reader raises for a damaged file into one line that begins with the file's name."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ValueError(f"{path.name} needs the package {error.name}; pip install keel[signals]") from None
    except OF_DAMAGED_FILES as error:
        text = " ".join(str(error).split()) or type(error).__name__
        is_named = text.startswith((path.name, str(path)))
        raise ValueError(text if is_named else f"{path.name}: {text}") from None


def find_files(given: str) -> list[Path]:
    """The recordings that a path names: itself, or all below a folder, sorted.

    Raises:
        ValueError: there is none.
    """
    path = Path(os.path.expanduser(given))
    if not path.is_dir() or is_bti(path):
        return [path]
    below = files_below(path)
    recordings = {file for file in below if _ends(file.name, SUFFIXES) and not _ends(file.name, TABLES_OF_BIDS)}
    first = {file: file.with_name(first_part(file.name)) for file in recordings}
    files = [file for file in recordings if first[file] == file or first[file] not in recordings]
    files += [file.parent for file in below if file.name == "config" and is_bti(file.parent)]
    if not files:
        raise ValueError(f"{given} has no recording in it; there are {', '.join(SUFFIXES)} and folders of BTi")
    return sorted(files)


def first_part(name: str) -> str:
    """The file that another one continues: of NAME-1.fif NAME.fif, of A_split-02_meg.fif A_split-01_meg.fif."""
    if not name.endswith(".fif"):
        return name
    name = re.sub(r"-\d+\.fif$", ".fif", name)
    return re.sub(r"_split-(\d+)_", lambda found: f"_split-{'1'.zfill(len(found[1]))}_", name)


def is_bti(folder: Path) -> bool:
    return (folder / "config").is_file() and any((folder / name).is_file() for name in BTI_DATA)


def _ends(name: str, suffixes: tuple[str, ...]) -> bool:
    return name.lower().endswith(suffixes)
