"""From recordings to a `Bundle`: prepared arrays, channels, splits, scaling, windows."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data.bundle import Bundle
from data.processor import saved_json
from data.samplers import EpochSampler, Numbers, ShuffledSampler
from data.signals.alignment import Alignment, align, listed
from data.signals.codes import Codes, encode
from data.signals.config import Config
from data.signals.dataset import NextSet, Signals, SignalSet, TrialSet, collate
from data.signals.forecast import FreeRun
from data.signals.mixup import MixTransform, quantizer_of
from data.signals.preparing import KEYS, Prepared, prepare
from data.signals.recording import find_files
from data.signals.scaling import Scaling, fit
from data.signals.scoring import Report, metric_of
from data.signals.splits import Origin, Stretch, common_folder, origin_of, split, stretches_of
from data.signals.text import TextSet, train
from data.signals.text import load as load_text
from data.signals.text_files import problem_of, save, settings_of
from data.signals.tokenizers import TOKENIZERS
from data.signals.windows import Windows, trials_of

FILE = "signals.json"
DEFAULT_WINDOW = 256  # samples
SET_NAMES = {"eval": "validation", "test": "test"}
SPLITS = {"path": "train", "eval_path": "eval", "test_path": "test"}
FINGERPRINT_ROWS = 4096


@dataclass
class Recordings:
    """All recordings of a run: its files, those of `path` first, and the stretches of each split."""

    files: list[Prepared]
    origins: dict[tuple[int, int], Origin]
    splits: dict[str, list[Stretch]]
    signals: Signals
    alignment: Alignment
    notes: list[str]

    @property
    def rate(self) -> float | None:
        return self.files[0].rate

    def window_of(self, config: Config) -> tuple[int | None, int]:
        """Rows of a window, None if the configuration has none, and by how much windows side by side overlap.

        Raises:
            ValueError: they are in seconds, and the rate is not known; or a window is less than a sample.
        """
        if config.window is None:
            return None, 0
        rate = 1 if config.unit == "samples" else self.rate
        if rate is None:
            raise ValueError("dataset.unit: seconds needs the recordings' rate; set dataset.sampling_rate")
        length = round(config.window * rate)
        if length < 1:
            raise ValueError(f"dataset.window: {config.window:g} {config.unit} is less than a sample; raise it")
        return length, min(round(config.overlap * rate), length - 1)


def assemble(config: Config, run: Any, encoder: Any = None) -> Bundle:
    """See `data.signals.build`."""
    earlier = trained_as(run)
    if earlier is not None and config.target == "class":
        config = replace(config, classes=earlier["classes"])
    recordings = open_all(config, run, earlier)
    build = class_sets if config.target == "class" else next_sets
    sets, dims, described = build(config, run, recordings, encoder)
    transforms = config.mixup.mixup_alpha or config.mixup.quantize
    problem = "values" if config.target == "values" else "single_label_classification"  # shares of classes, too
    described = {**saved(config, recordings), **described}
    files = {
        FILE: described,
        "data.json": {name: [rows_in(dataset), fingerprint(dataset)] for name, dataset in sets.items()},
    }
    return Bundle(
        train_dataset=sets["train"],
        eval_datasets={"validation": sets["eval"]} if "eval" in sets else {},
        test_datasets={"test": sets["test"]} if "test" in sets else {},
        collate=collate,
        sampler=sampler_of(sets["train"]),
        train_transform=MixTransform(config.mixup) if transforms else None,
        dims={**dims, "channels": len(recordings.alignment.names), "target": config.target, "problem_type": problem},
        files=files,
        summary=[*recordings.notes, summary(recordings, sets)],
        units={"samples": dims["context"]},
        metrics={SET_NAMES[name]: metric_of(described, dataset) for name, dataset in sets.items() if name != "train"},
        report=Report(sets["train"], recordings.alignment.names),
        free_run=FreeRun(sets["train"], recordings.rate) if config.target in ("tokens", "values") else None,
    )


def trained_as(run: Any) -> dict[str, Any] | None:
    """The content of signals.json of the model that is scored on these recordings; None: a new model is trained."""
    folder = getattr(run, "trained_in", None)
    return None if folder is None else saved_json(folder, FILE)


def open_all(config: Config, run: Any, earlier: dict[str, Any] | None = None) -> Recordings:
    """Prepare all recordings, split them and fit the scaling, or take that of an `earlier` run (`trained_as`).

    Raises:
        ValueError: they cannot be used together, one line.
    """
    cache = Path(run.cache_dir) / "signals"
    entries = [(key, entry, file) for key in SPLITS for entry in config.paths(key) for file in find_files(entry)]
    settings = {name: getattr(config, name) for name in KEYS}
    files = prepare([file for _, _, file in entries], settings, cache, config.num_workers)
    trained = sum(key == "path" for key, _, _ in entries)
    alignment, notes = align(files, trained, config)
    folders = {
        name: common_folder(named[1:] for named in entries if named[0] == name)
        for name in {entry[0] for entry in entries}
    }
    origins = {
        (number, index): origin_of(file, part, entry, folders[name], config.datasplitter)
        for number, (file, (name, entry, _)) in enumerate(zip(files, entries, strict=True))
        for index, part in enumerate(file.parts)
    }
    is_trials = any(len(file.parts) > 1 for file in files)
    trained_origins = {place: origin for place, origin in origins.items() if place[0] < trained}
    stretches = stretches_of(files, alignment.columns, config.nan)
    own = [stretch for stretch in stretches if stretch.file < trained]
    splits = split(own, files, trained_origins, config, run.seed, is_trials)
    for stretch in stretches[len(own) :]:
        splits.setdefault(SPLITS[entries[stretch.file][0]], []).append(stretch)
    constant: list[int] = []
    if earlier is None:
        shift, scale, constant = fit(config.standardise, files, alignment.columns, splits["train"], cache)
    elif alignment.names != earlier["channel_names"]:
        shown = (", ".join(names[:8]) for names in (alignment.names, earlier["channel_names"]))
        raise ValueError("the channels are {}, the model was trained on {}; set dataset.channels".format(*shown))
    else:
        shift, scale = np.array(earlier["shift"]), np.array(earlier["scale"])
    signals = Signals(files, alignment.columns, Scaling(shift, scale, config.clip), config.fill_value)
    if constant:
        notes.append(f"constant in training, and not scaled: {listed([alignment.names[n] for n in constant])}")
    notes = [*(note for file in files for note in file.notes), *notes]
    return Recordings(files, origins, splits, signals, alignment, notes)


def next_sets(
    config: Config, run: Any, recordings: Recordings, encoder: Any
) -> tuple[dict[str, SignalSet], dict[str, Any], dict[str, Any]]:
    """(sets, dims, what is saved) of targets that follow their inputs."""
    length, overlap = recordings.window_of(config)
    length = length or DEFAULT_WINDOW
    recordings.notes += without_windows(recordings, length)
    hop = length - overlap
    signals, splits, tokenizer, step = recordings.signals, recordings.splits, None, 1
    if encoder is not None:
        tokenizer = Codes(encoder)
        length, hop, step = (codes_of(rows, tokenizer) for rows in (length, hop, tokenizer.hop))
        signals, splits = coded(config, run, recordings, tokenizer)
    elif config.target in ("tokens", "text"):
        tokenizer = TOKENIZERS[config.tokenizer](config.levels, config.clip)
    kind, dims = NextSet, {"context": length} | ({"vocab_size": tokenizer.vocab_size} if tokenizer else {})
    if config.target == "text":
        text = load_text(config.tokenizer_path, config.levels, config.group, config.use_separator)
        kind = functools.partial(TextSet, text=text, max_length=config.max_length)
        longest = text.longest(len(recordings.alignment.names), length)
        dims = {"context": min(longest, config.max_length or longest), "vocab_size": text.vocab_size}
    sets: dict[str, SignalSet] = {}
    seed = run.trainer.get("data_seed")
    seed = run.seed if seed is None else seed
    for name, stretches in splits.items():
        is_random = name == "train" and config.sampling != "grid" and run.process.shuffle
        windows = Windows(stretches, length, step if is_random else hop, seed if is_random else None)
        if not len(windows):
            longest = max(stretch.stop - stretch.start for stretch in recordings.splits[name])
            remedy = "lower it" if name == "train" else f"lower it, or raise dataset.datasplitter.{name}_fraction"
            raise ValueError(f"dataset.window: {length} samples is longer than all of {name} ({longest}); {remedy}")
        samples = epoch_of(stretches, length, run) if is_random else None
        sets[name] = kind(signals, stretches, windows, samples, tokenizer, is_scored=name != "train")
    return sets, dims, {}


def without_windows(recordings: Recordings, length: int) -> list[str]:
    """A line for each split with recordings in it that are too short for a window of `length` rows."""
    lines = []
    for name, stretches in recordings.splits.items():
        names = {(s.file, s.part): recordings.files[s.file].parts[s.part].name for s in stretches}
        read = {(s.file, s.part) for s in stretches if s.stop - s.start >= length}
        if short := [names[place] for place in names if place not in read]:
            lines.append(f"{name}: {len(short)} of {len(names)} recordings are shorter than a window: {listed(short)}")
    return lines


def codes_of(rows: int, codes: Codes) -> int:
    """A length in samples as a number of codes.

    Raises:
        ValueError: it is not a whole number of the network's frames.
    """
    if rows % codes.hop:
        raise ValueError(f"dataset.window and overlap must be multiples of {codes.hop} samples, the tokenizer's frame")
    return rows // codes.hop * codes.quantizers


def coded(config: Config, run: Any, recordings: Recordings, codes: Codes) -> tuple[Signals, dict[str, list[Stretch]]]:
    """The recordings as codes, and their splits in these."""
    stretches = [stretch for split in recordings.splits.values() for stretch in split]
    signals = encode(recordings.signals, stretches, codes, config.tokenizer, Path(run.cache_dir) / "signals")
    parts = signals.files[0].parts
    places = iter(Stretch(0, index, part.start, part.stop) for index, part in enumerate(parts))
    return signals, {name: [next(places) for _ in split] for name, split in recordings.splits.items()}


def train_text(config: Config, run: Any) -> Path:
    """Train the tokenizer of `target: text` on the training split; returns its folder.

    Raises:
        ValueError: there is one for other settings.
    """
    if config.tokenizer_path is None:
        raise ValueError("dataset.tokenizer_path is missing; name the folder that the tokenizer is written to")
    folder, settings = Path(config.tokenizer_path), settings_of(config)
    if (folder / "tokenizer").exists():
        problem = problem_of(config.tokenizer_path, settings)
        if problem is not None:
            raise ValueError(f"{problem}; name another folder, or remove this one")
        return folder
    recordings = open_all(config, run)
    stretches = recordings.splits["train"]
    length = min(config.group, max(stretch.stop - stretch.start for stretch in stretches))
    tokenizer = TOKENIZERS[config.tokenizer](config.levels, config.clip)
    groups = NextSet(recordings.signals, stretches, Windows(stretches, length, length), tokenizer=tokenizer)
    save(train(groups, config.levels, config.tokenizer_size), folder, settings)
    return folder


def epoch_of(stretches: Sequence[Stretch], length: int, run: Any) -> int:
    """Windows that cover the stretches once, in whole optimizer steps; at least one step."""
    windows = sum((stretch.stop - stretch.start) // length for stretch in stretches)
    step = run.samples_per_step
    return max(1, windows // step) * step


def class_sets(
    config: Config, run: Any, recordings: Recordings, encoder: Any
) -> tuple[dict[str, SignalSet], dict[str, Any], dict[str, Any]]:
    """(sets, dims, what is saved) of classes.

    Raises:
        ValueError: there is no labelled window, or a class that training has not.
    """
    length, overlap = recordings.window_of(config)
    trials_by_split = {
        name: trials_of(recordings.files, stretches, length, overlap, config.classes)
        for name, stretches in recordings.splits.items()
    }
    for name, trials in trials_by_split.items():
        if not trials:
            raise ValueError(without_labels(name, recordings, length))
    classes = config.classes or sorted({trial.label for trial in trials_by_split["train"]}, key=natural)
    for name, trials in trials_by_split.items():
        for trial in trials:
            if trial.label not in classes:
                place, known = recordings.files[trial.file].parts[trial.part].name, ", ".join(classes[:20])
                remedy = "name the events to read in dataset.classes, or split otherwise"
                raise ValueError(f"{place} ({name}) has the class {trial.label}; known are {known}: {remedy}")
    mixed = config.mixup.num_classes
    if config.mixup.mixup_alpha and mixed != len(classes):
        raise ValueError(f"dataset.mixup.num_classes: {mixed}, but there are {len(classes)} classes; set it so")
    number = {name: index for index, name in enumerate(classes)}
    subjects = {place: origin.subject or origin.session for place, origin in recordings.origins.items()}
    groups = {name: index for index, name in enumerate(sorted(set(subjects.values())))}
    sets = {}
    for name, trials in trials_by_split.items():
        labels = np.array([number[trial.label] for trial in trials])
        group = np.array([groups[subjects[trial.file, trial.part]] for trial in trials])
        quantizer = None if name == "train" else quantizer_of(config.mixup)
        sets[name] = TrialSet(recordings.signals, recordings.splits[name], trials, labels, group, quantizer)
    longest = max(trial.stop - trial.start for trials in trials_by_split.values() for trial in trials)
    dims = {"context": longest, "classes": len(classes)}
    dims |= {"vocab_size": config.mixup.mu + 1} if config.mixup.quantize else {}
    return sets, dims, {"classes": classes, "groups": list(groups)}


def without_labels(name: str, recordings: Recordings, length: int | None) -> str:
    """Why a split has no labelled window."""
    stretches = recordings.splits[name]
    labelled = [s.stop - s.start for s in stretches if recordings.files[s.file].parts[s.part].label is not None]
    if labelled:
        longest = f"longer than every labelled recording for {name} ({max(labelled)})"
        return f"dataset.window: {length} samples is {longest}; lower it, or set it to null for whole ones"
    needed = "that lasts; set dataset.window" if length is None else f"with {length} samples from its begin on"
    return f"dataset.target: class: {name} has no recording with a label, nor an event of dataset.classes {needed}"


def natural(name: str) -> tuple[float, str]:
    """Numbers by value, before words."""
    return (float(name), "") if name.lstrip("-").isdigit() else (float("inf"), name)


def sampler_of(dataset: SignalSet) -> Callable[[int], EpochSampler]:
    """Seed -> sampler: numbers of random windows, or each window once an epoch."""
    if isinstance(dataset, NextSet) and dataset.windows.seed is not None:
        return functools.partial(Numbers, len(dataset))
    return functools.partial(ShuffledSampler, len(dataset))


def saved(config: Config, recordings: Recordings) -> dict[str, Any]:
    """What reading a new recording as these needs, as JSON values."""
    kept = (*KEYS, "merge_by", "missing", "fill_value", "standardise", "clip", "tokenizer", "levels", "target")
    return {
        **{name: getattr(config, name) for name in kept},
        "channel_names": recordings.alignment.names,
        "channel_types": recordings.alignment.types,
        "rate": recordings.rate,
        "shift": recordings.signals.scaling.shift.tolist(),
        "scale": recordings.signals.scaling.scale.tolist(),
    }


def rows_in(dataset: SignalSet) -> int:
    return sum(stretch.stop - stretch.start for stretch in dataset.stretches)


def fingerprint(dataset: SignalSet) -> str:
    """A digest of rows taken evenly from a split."""
    digest = hashlib.sha256()
    for stretch in dataset.stretches:
        step = max(1, (stretch.stop - stretch.start) * len(dataset.stretches) // FINGERPRINT_ROWS)
        array = dataset.signals.files[stretch.file].array()
        digest.update(np.ascontiguousarray(array[stretch.start : stretch.stop : step]).tobytes())
    return digest.hexdigest()[:16]


def summary(recordings: Recordings, sets: dict[str, SignalSet]) -> str:
    rate = "unknown rate" if recordings.rate is None else f"{recordings.rate:g} Hz"
    parts = [
        f"{rows_in(dataset):,} samples, {len(dataset):,} windows {SET_NAMES.get(name, 'training')}"
        for name, dataset in sets.items()
    ]
    count = sum(len(file.parts) for file in recordings.files)
    return f"recordings: {count}; channels: {len(recordings.alignment.names)}, at {rate}; {'; '.join(parts)}"
