"""Find records and read them one by one, each with its place for errors: FILE:LINE."""

import collections
import functools
import importlib.util
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from data.cache import MANIFEST
from data.files import files_below
from data.hub import load_dataset
from data.records.forms import read_form
from data.strict_json import json_lines, open_maybe_compressed, reason

SUFFIXES = (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".ndjson.gz", ".json.gz")
TRAIN_FILE, HELD_OUT_FILE = "train.jsonl", "val.jsonl"
# Names of validation splits: of files, of folders and in Hugging Face datasets, where the first one counts.
HELD_OUT_SPLITS = ("validation", "valid", "val", "dev", "test")
WHITE_SPACE = re.compile(r"\s*")
AFTER_VALUE = re.compile(r"\s*(,\s*|(?=\]))")
SPLIT_NAME = re.compile(rf"({'|'.join(('train', *HELD_OUT_SPLITS))})(?![A-Za-z])")


@dataclass(frozen=True)
class RecordSource:
    """Records in files, one after another, or those of a split of a Hugging Face dataset.

    `left_out` counts the files of the folder that are not read, by the ending of their names.
    """

    files: tuple[Path, ...] = ()
    hub_id: str | None = None
    split: str = "train"
    left_out: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        if self.hub_id is not None:
            return f"{self.hub_id} ({self.split})"
        if len(self.files) == 1:
            return str(self.files[0])
        return f"{os.path.commonpath(self.files)} ({len(self.files)} files)"


def find(path: str, cache_dir: Path, key: str) -> tuple[RecordSource, RecordSource | None]:
    """Return the records that `path` names and, if they are split, the validation records.

    Args:
        path: A file, a folder, a name in data/ or `cache_dir`/datasets, or the id of a Hugging Face dataset.
        key: The configuration key, for errors.

    Raises:
        ValueError: Nothing is there, or it contains no records.
    """
    place = located(path, cache_dir)
    if place is None:
        return _on_hub(path, key)
    if place.is_file():
        if not place.name.endswith(SUFFIXES):
            raise ValueError(f"{key}: {path} is neither .jsonl nor .json (or .gz of them); give one JSON object a line")
        return RecordSource((place,)), None
    by_split = collections.defaultdict(list)
    for file in _files_in(place):
        by_split[_split_of(file.relative_to(place))].append(file)
    train, held_out = by_split.pop("train", None) or by_split.pop("", []), by_split.pop("val", [])
    if not train:
        raise ValueError(f"{key}: the folder {path} holds no .jsonl or .json file; name the one with the records")
    left_out = collections.Counter(file.suffix or file.name for files in by_split.values() for file in files)
    train = RecordSource(tuple(train), left_out=dict(left_out))
    return train, RecordSource(tuple(held_out)) if held_out else None


def _split_of(file: Path) -> str | None:
    """Which split a file below a folder belongs to by its name or a folder's; empty: any; None: it holds no records."""
    if not file.name.endswith(SUFFIXES):
        return None
    names = [match[0] for part in file.parts if (match := SPLIT_NAME.match(part))]
    if names and names[0] in HELD_OUT_SPLITS[:-1]:
        return "val"
    return names[0] if names else ""


def located(path: str, cache_dir: Path) -> Path | None:
    """Where a path or name is on this machine, or None."""
    direct = Path(path).expanduser()
    if direct.exists():
        return direct
    named = [Path("data") / path, cache_dir / "datasets" / path]
    return next((place for place in named if any(_split_of(file) is not None for file in _files_in(place))), None)


def _files_in(folder: Path) -> list[Path]:
    """The files below a folder, if there is one, without the cache's manifest."""
    files = files_below(folder) if folder.is_dir() else []
    return [file for file in files if file.is_file() and file.name != MANIFEST]


def _on_hub(path: str, key: str) -> tuple[RecordSource, RecordSource | None]:
    missing = f"{key}: {path} does not exist, neither as a file or folder nor as a name in data/ or $KEEL_HOME/datasets"
    if path.startswith(("/", ".", "~")) or path.endswith(SUFFIXES) or path.count("/") > 1:
        raise ValueError(missing)
    if importlib.util.find_spec("datasets") is None:
        raise ValueError(f"{missing}; a Hugging Face dataset of that id needs the package datasets")
    return RecordSource(hub_id=path), None


def read(source: RecordSource) -> Iterator[tuple[str, object]]:
    """Yield (place, JSON value) of each record.

    Raises:
        ValueError: A file is not JSON or not UTF-8, or has no record.
    """
    if source.hub_id is not None:
        for number, record in enumerate(hub_splits(source.hub_id)[source.split], 1):
            yield f"{source} record {number}", dict(record)
        return
    for file in source.files:
        count = 0
        for place, value in _read_file(file):
            count += 1
            yield place, value
        if not count:
            raise ValueError(f"{file}: holds no record; remove the file, or put one JSON object on each line")


def _read_file(file: Path) -> Iterator[tuple[str, object]]:
    with open_maybe_compressed(file) as stream:
        if file.name.removesuffix(".gz").endswith(".json"):
            content = stream.read().removeprefix(b"\xef\xbb\xbf")
            if content.lstrip().startswith(b"["):
                yield from _read_list(file, content)
                return
            stream = content.splitlines()
        yield from json_lines(file, stream)


def _read_list(file: Path, content: bytes) -> Iterator[tuple[str, object]]:
    """The elements of one JSON list, each with the line that it begins on."""
    line, counted = 1, 0
    try:
        text = content.decode()
        begin = WHITE_SPACE.match(text, text.index("[") + 1).end()
        while text[begin : begin + 1] != "]":
            line, counted = line + text.count("\n", counted, begin), begin
            value, end = json.JSONDecoder().raw_decode(text, begin)
            separator = AFTER_VALUE.match(text, end)
            if separator is None:
                raise json.JSONDecodeError("a list continues with `,` or ends with `]`; is it cut short?", text, end)
            yield f"{file}:{line}", value
            begin = separator.end()
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}:{line}: not JSON ({reason(error)}); the file is a list of JSON objects") from None


@functools.cache
def hub_splits(hub_id: str) -> dict:
    """Return split name -> records of a Hugging Face dataset, downloaded or from its cache."""
    splits = load_dataset(f"dataset.path: {hub_id}", hub_id)
    if "train" not in splits:
        raise ValueError(f"dataset.path: {hub_id} has no split `train`, only {', '.join(splits)}")
    return splits


def split_of_hub(source: RecordSource) -> RecordSource | None:
    """Return the validation split of a Hugging Face dataset, if it has one."""
    names = hub_splits(source.hub_id)
    held_out = next((name for name in HELD_OUT_SPLITS if name in names), None)
    return RecordSource(hub_id=source.hub_id, split=held_out) if held_out else None


def first_problem(source: RecordSource, text_column: str | None) -> list[str]:
    """Return what is wrong with the first record, if anything; nothing is loaded from a hub."""
    if source.hub_id is not None:
        return []
    try:
        place, record = next(read(source))
        read_form(record, place, text_column)
    except (ValueError, OSError) as error:
        return [" ".join(str(error).split())]
    return []
