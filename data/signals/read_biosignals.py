"""Read EDF, BDF, FIF, BrainVision, KIT and BTi files by MNE, and WFDB records by wfdb. Values are in SI units; in the
record's units of WFDB."""

from __future__ import annotations

import os
import re
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from data.signals.recording import BTI_DATA, Event, Recording

BOUNDARY = "BOUNDARY"  # annotations EDGE boundary and BAD boundary: recordings that were joined here
ANNOTATORS = ("atr", "qrs", "ari", "ecg")  # of annotation files beside a WFDB record


def read(path: Path, label_column: str | None) -> list[Recording]:
    """See `recording.open_recordings`."""
    if path.suffix.lower() == ".hea":
        return [read_wfdb(path)]
    return [read_mne(path)]


def open_raw(path: Path, preload: str | bool) -> Any:
    """MNE's Raw, without its samples, or with all of them in a memory-mapped file."""
    import mne

    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore", RuntimeWarning)  # of names and of missing positions
        if path.suffix.lower() == ".vhdr":
            path = with_present_files(path, Path(folder))
        if path.is_dir():
            data = next(path / name for name in BTI_DATA if (path / name).is_file())
            head_shape = path / "hs_file"
            head_shape = str(head_shape) if head_shape.is_file() else None
            return mne.io.read_raw_bti(data, head_shape_fname=head_shape, preload=preload, verbose="ERROR")
        return mne.io.read_raw(path, preload=preload, verbose="ERROR")


def read_mne(path: Path) -> Recording:
    import mne

    header = EdfHeader(path) if path.suffix.lower() in (".edf", ".bdf") else None
    # Channels of a lower rate are brought to the highest one, which MNE does right for the whole recording alone.
    folder = tempfile.TemporaryDirectory() if header is not None and header.has_several_rates else None
    raw = open_raw(path, f"{folder.name}/samples" if folder else False)

    def read_block(start: int, stop: int) -> np.ndarray:
        assert folder is None or Path(folder.name).is_dir()  # it is there as long as this function
        return raw.get_data(start=start, stop=stop, verbose="ERROR")

    rate, locations = float(raw.info["sfreq"]), [channel["loc"][:3] for channel in raw.info["chs"]]
    onsets = raw.annotations.onset - (raw.first_time if raw.annotations.orig_time is not None else 0)
    events = events_of(onsets, raw.annotations)
    breaks = {round(event.onset * rate) for event in events if BOUNDARY in event.description.upper()}
    if header is not None and header.gaps:
        # Raw leaves out what lies beyond the length of the recording without its gaps.
        annotations = mne.read_annotations(path)
        events = events_of(map(header.recorded, annotations.onset), annotations)
        breaks |= {round(place * rate) for place, _ in header.gaps}
    return Recording(
        path.name,
        list(raw.ch_names),
        raw.n_times,
        read_block,
        rate=rate,
        types=raw.get_channel_types(),
        positions=[loc.tolist() if np.isfinite(loc).all() and loc.any() else None for loc in locations],
        events=events,
        breaks=sorted(breaks),
    )


def events_of(onsets: Iterable[float], annotations: Any) -> list[Event]:
    rows = zip(onsets, annotations.duration, annotations.description, strict=True)
    return [Event(float(onset), float(duration), str(text)) for onset, duration, text in rows]


def with_present_files(path: Path, folder: Path) -> Path:
    """A BrainVision header, in `folder`, with the files that stand beside it where it was renamed with them."""
    text = path.read_text(encoding="latin-1")  # any bytes, whichever code page it names
    for entry, suffix in (("DataFile", ".eeg"), ("MarkerFile", ".vmrk")):
        line = re.search(rf"^{entry}=(.*?)\r?$", text, re.MULTILINE)
        if line is None:
            continue
        named = path.with_name(line[1].replace("$b", path.stem))
        present = next((file for file in (named, path.with_suffix(suffix)) if file.is_file()), None)
        if present is None and entry == "DataFile":
            raise ValueError(f"{path.name}: its data file {line[1]} is missing")
        replaced = f"{entry}={os.fsencode(present.absolute()).decode('latin-1')}" if present else ""
        text = text[: line.start()] + replaced + text[line.end() :]
    header = folder / path.name
    header.write_text(text, encoding="latin-1")
    return header


class EdfHeader:
    """What MNE does not say of an EDF or BDF file: whether it is whole, and its gaps (EDF+D).

    Attributes:
        gaps: (seconds of recording before it, seconds that are missing).
        has_several_rates: Its channels differ in their samples a second.

    Raises:
        ValueError: the header says another length than the file has; -1 records, of a recording that was not closed, is
            right. MNE reads what is there, with a warning.
    """

    def __init__(self, path: Path):
        size = path.stat().st_size
        with path.open("rb") as stream:
            head = stream.read(256)
            try:
                start, records, duration = int(head[184:192]), int(head[236:244]), float(head[244:252])
                signals = int(head[252:256])
                labels = [stream.read(16).strip() for _ in range(signals)]
                stream.seek(256 + 216 * signals)
                widths = [int(stream.read(8)) * (3 if path.suffix.lower() == ".bdf" else 2) for _ in range(signals)]
            except ValueError:
                raise ValueError("no EDF or BDF file: there are no numbers in its header") from None
            if records != -1 and size != (expected := start + records * sum(widths)):
                remedy = "copy it again, or write -1 as the number of records to read what is there"
                raise ValueError(f"its header says {records} records, {expected:,} bytes, but has {size:,}; {remedy}")
            if not duration > 0:
                raise ValueError(f"its header says that a record lasts {duration:g} seconds; write its true duration")
            self.gaps: list[tuple[float, float]] = []
            marks = [number for number, label in enumerate(labels) if label.endswith(b"Annotations")]
            self.has_several_rates = len({width for n, width in enumerate(widths) if n not in marks}) > 1
            if head[192:197] in (b"EDF+D", b"BDF+D") and marks:
                first = start + sum(widths[: marks[0]])
                expected = 0.0
                for record in range((size - start) // sum(widths)):
                    stream.seek(first + record * sum(widths))
                    onset = float(stream.read(widths[marks[0]]).split(b"\x14")[0])
                    if record and onset - expected > duration / 1000:
                        self.gaps.append((record * duration, onset - expected))
                    expected = onset + duration

    def recorded(self, onset: float) -> float:
        """A time as seconds of recording, without the gaps before it."""
        for place, missing in self.gaps:
            onset -= min(missing, max(0.0, onset - place))
        return onset


def read_wfdb(path: Path) -> Recording:
    import wfdb

    stem = str(path.with_suffix(""))
    header = wfdb.rdheader(stem)
    if not header.sig_name:
        header = wfdb.rdheader(stem, rd_segments=True)
    files = header.file_name or []
    present = [number for number, name in enumerate(files) if (path.parent / name).is_file()]
    if files and not present:
        raise ValueError(f"{path.name}: its signal file {files[0]} is missing")
    absent = [number for number in range(len(files)) if number not in present]
    picked = present if absent else None

    # A header may leave out the number of samples; wfdb then reads no part of the record.
    whole = wfdb.rdrecord(stem, channels=picked) if header.sig_len is None else None

    def read_block(start: int, stop: int) -> np.ndarray:
        if whole is not None:
            return whole.p_signal[start:stop].T.astype(np.float64)
        return wfdb.rdrecord(stem, sampfrom=start, sampto=stop, channels=picked).p_signal.T.astype(np.float64)

    names = list(header.sig_name) if picked is None else [header.sig_name[number] for number in picked]
    return Recording(
        path.name,
        numbered(names),
        header.sig_len if whole is None else len(whole.p_signal),
        read_block,
        rate=float(header.fs),
        events=wfdb_events(stem, float(header.fs)),
        notes=[f"{path.name}: {header.sig_name[number]} is left out, {files[number]} is missing" for number in absent],
    )


def numbered(names: list[str]) -> list[str]:
    """Names of which some are equal with numbers behind those, as MNE does: ECG-0, ECG-1."""
    pairs = enumerate(names)
    return [f"{name}-{names[:place].count(name)}" if names.count(name) > 1 else name for place, name in pairs]


def wfdb_events(stem: str, rate: float) -> list[Event]:
    import wfdb

    events = []
    for annotator in ANNOTATORS:
        if Path(f"{stem}.{annotator}").is_file():
            marks = wfdb.rdann(stem, annotator)
            rows = zip(marks.sample.tolist(), marks.symbol, marks.aux_note, strict=True)
            events += [Event(sample / rate, 0.0, symbol + note.rstrip("\0")) for sample, symbol, note in rows]
    return events
