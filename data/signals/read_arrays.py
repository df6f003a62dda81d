"""Read .npy and .npz files, and brain_gen's session folders: pickled dicts, opened without running what they name.

A .npy file is (channels, samples) and is memory-mapped. A .npz file is read whole: an array `data`, (channels, samples)
or (trials, channels, samples), with `channels`, `sampling_rate`, `labels` and `subjects` beside it; or one array
(samples,) per channel. Labels of (channels, samples) are one, or one for each sample, whose runs are events.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from data.signals.recording import Event, Recording, of_array

DATA, NAMES = ("data", "signal", "signals", "x", "X"), ("channels", "ch_names", "channel_names")
RATES, LABELS = ("sampling_rate", "sample_rate", "sfreq", "fs"), ("labels", "label", "y")
SUBJECTS = ("subjects", "subject")
# What a pickle of arrays and plain containers names; anything else is refused.
ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
    *((f"numpy.{core}.{module}", name) for core in ("core", "_core") for module, name in (
        ("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))),
}  # fmt: skip


class PlainUnpickler(pickle.Unpickler):
    """Reads NumPy arrays and plain containers; a pickle that names anything else is refused before it is called."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}; only arrays and plain containers are read")
        return super().find_class(module, name)


def read(path: Path, label_column: str | None) -> list[Recording]:
    """See `recording.open_recordings`."""
    if path.suffix.lower() == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return read_npz(path, dict(file))
    with path.open("rb") as stream:
        if stream.peek(1)[:1] == pickle.PROTO:
            return [read_session(path, PlainUnpickler(stream).load())]
        header = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
        shape, _, dtype = header[np.lib.format.read_magic(stream)[0]](stream)
        if dtype.hasobject:
            return [read_session(path, PlainUnpickler(stream).load())]
    return [read_npy(path, shape, dtype)]


def read_npy(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> Recording:
    if len(shape) not in (1, 2) or dtype.kind not in "fiu":
        raise ValueError(f"{path.name}: {dtype} {shape}; expected numbers of (channels, samples)")

    def read_block(start: int, stop: int) -> np.ndarray:
        # Mapped again for every block: the pages read through one map would stay in the memory of the process.
        return np.array(np.atleast_2d(np.load(path, mmap_mode="r"))[:, start:stop], np.float64)

    return Recording(path.name, [f"ch{index}" for index in range(shape[0] if shape[1:] else 1)], shape[-1], read_block)


def read_npz(path: Path, arrays: dict[str, np.ndarray]) -> list[Recording]:
    data, rate, names, label = (first_of(arrays, keys) for keys in (DATA, RATES, NAMES, LABELS))
    rate = None if rate is None else float(np.asarray(rate).item())
    names = None if names is None else [text_of(name) for name in names]
    channels = {name: array for name, array in arrays.items() if name not in (*RATES, *LABELS[:2])}
    shapes = {array.shape for array in channels.values()}
    is_each_alone = len(shapes) == 1 and len(next(iter(shapes))) == 1
    if data is None and not is_each_alone:
        described = ", ".join(f"{name} {array.shape}" for name, array in channels.items())
        raise ValueError(f"{path.name}: no array named data or signal, nor channels of equal length: {described}")
    is_of_axes = data is not None and is_each_alone and {"x", "y"} <= {name.lower() for name in channels}
    if data is None or is_of_axes:
        data, names, label = np.stack(list(channels.values())), list(channels), first_of(arrays, LABELS[:2])
    if data.ndim < 3:
        data = np.atleast_2d(data)
        if label is None or label.size == 1:
            return [of_array(path.name, data, names, rate=rate, label=None if label is None else text_of(label.item()))]
        if label.shape != data.shape[1:]:
            raise ValueError(f"{path.name}: labels {label.shape} for data {data.shape}; expected one, or one a sample")
        return [of_array(path.name, data, names, rate=rate, events=runs_of(label, rate or 1.0))]
    if data.ndim > 3:
        raise ValueError(f"{path.name}: data {data.shape}; expected (trials, channels, samples) or (channels, samples)")
    labels, subjects = (np.broadcast_to(first_of(arrays, keys), len(data)) for keys in (LABELS, SUBJECTS))
    return [
        of_array(
            f"{path.name}#{index}",
            trial,
            names,
            rate=rate,
            label=None if labels[index] is None else text_of(labels[index]),
            subject=None if subjects[index] is None else text_of(subjects[index]),
        )
        for index, trial in enumerate(data)
    ]


def runs_of(labels: np.ndarray, rate: float) -> list[Event]:
    """Runs of equal labels (T,) as events."""
    starts = [0, *(np.flatnonzero(labels[1:] != labels[:-1]) + 1).tolist()]
    spans = zip(starts, [*starts[1:], len(labels)], strict=True)
    return [Event(start / rate, (end - start) / rate, text_of(labels[start])) for start, end in spans]


def text_of(value: Any) -> str:
    """A label, or a name; bytes are text, too."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def read_session(path: Path, content: Any) -> Recording:
    """A part of a session as brain_gen writes it: `root/SESSION/N.npy`."""
    if isinstance(content, np.ndarray) and content.shape == ():
        content = content.item()
    if not isinstance(content, dict) or not {"data", "ch_names", "sfreq"} <= content.keys():
        raise ValueError(f"{path.name}: a pickle without data, ch_names and sfreq")
    positions = content.get("pos_2d")
    return of_array(
        path.name,
        np.asarray(content["data"], np.float64),
        list(content["ch_names"]),
        rate=float(content["sfreq"]),
        types=None if content.get("ch_types") is None else [str(kind) for kind in content["ch_types"]],
        positions=None if positions is None else np.asarray(positions, np.float64).tolist(),
        session=path.parent.name,
    )


def first_of(arrays: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((arrays[name] for name in names if name in arrays), None)
