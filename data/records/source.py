"""Where records lie, and reading them one by one, each with its place for errors: FILE:LINE."""

import functools
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data.strict_json import parsed, why

SUFFIXES = (".jsonl", ".json")
TRAIN_FILE, HELD_OUT_FILE = "train.jsonl", "val.jsonl"
# Splits of a Hugging Face data set that are held out, by custom; the first that it has counts.
HELD_OUT_SPLITS = ("validation", "valid", "val", "dev", "test")


@dataclass(frozen=True)
class RecordSource:
    """Records in files, one after another; or those of a Hugging Face data set's split."""

    files: tuple[Path, ...] = ()
    hub_id: str | None = None
    split: str = "train"

    def __str__(self) -> str:
        if self.hub_id is not None:
            return f"{self.hub_id} ({self.split})"
        return str(self.files[0]) if len(self.files) == 1 else f"{self.files[0].parent} ({len(self.files)} files)"


def is_found(path: str, cache_dir: Path) -> bool:
    """Whether a path or name is there on this machine."""
    return _located(path, cache_dir) is not None


def find(path: str, cache_dir: Path, key: str) -> tuple[RecordSource, RecordSource | None]:
    """The records that `path` means and, where they come split, the held-out ones.

    Args:
        path: a file, a folder, a name in data/ or `cache_dir`/datasets, or a Hugging Face data set's id.
        key: what to call it in errors.

    Raises:
        ValueError: nothing is there, or no records are in it.
    """
    place = _located(path, cache_dir)
    if place is None:
        return _on_hub(path, key)
    if place.is_file():
        if place.suffix not in SUFFIXES:
            raise ValueError(f"{key}: {path} is neither .jsonl nor .json; give records as JSON, one object a line")
        return RecordSource((place,)), None
    train, held_out = place / TRAIN_FILE, place / HELD_OUT_FILE
    if train.is_file():
        return RecordSource((train,)), RecordSource((held_out,)) if held_out.is_file() else None
    files = _record_files(place)
    if not files:
        raise ValueError(f"{key}: the folder {path} holds no .jsonl or .json file; name the one with the records")
    return RecordSource(tuple(files)), None


def _located(path: str, cache_dir: Path) -> Path | None:
    direct = Path(path).expanduser()
    if direct.exists():
        return direct
    named = [Path("data") / path, cache_dir / "datasets" / path]
    return next((each for each in named if each.is_dir() and _record_files(each)), None)


def _record_files(folder: Path) -> list[Path]:
    """A folder's files of records, sorted by name; `manifest.json` is this program's own note."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and path.suffix in SUFFIXES and path.name != "manifest.json" and path.name[0] != "."
    )


def _on_hub(path: str, key: str) -> tuple[RecordSource, RecordSource | None]:
    missing = f"{key}: {path} does not exist, neither as a file or folder nor as a name in data/ or $KEEL_HOME/datasets"
    if path.startswith(("/", ".", "~")) or path.endswith(SUFFIXES) or path.count("/") > 1:
        raise ValueError(missing)
    if importlib.util.find_spec("datasets") is None:
        raise ValueError(f"{missing}; a Hugging Face data set of that id needs the package datasets")
    return RecordSource(hub_id=path), None


def read(source: RecordSource) -> Iterator[tuple[str, object]]:
    """(place, JSON value) of each record.

    Raises:
        ValueError: not JSON, not UTF-8, or no record at all.
    """
    if source.hub_id is not None:
        yield from _read_hub(source)
        return
    for file in source.files:
        count = 0
        for place, value in _read_file(file):
            count += 1
            yield place, value
        if not count:
            raise ValueError(f"{file}: holds no record; remove the file, or put one JSON object on each line")


def _read_file(file: Path) -> Iterator[tuple[str, object]]:
    if file.suffix == ".json":
        text = _decoded(file.read_bytes(), str(file))
        if text.lstrip().startswith("["):
            yield from _read_list(file, text)
            return
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            place = f"{file}:{number}"
            text = _decoded(line, place).strip()
            if text:
                try:
                    value = parsed(text)
                except ValueError as error:
                    raise ValueError(f"{place}: not JSON ({error}); each line is one JSON object") from None
                yield place, value


def _decoded(content: bytes, place: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{place}: not UTF-8 text ({error.reason} at byte {error.start}); convert the file") from None


def _read_list(file: Path, text: str) -> Iterator[tuple[str, object]]:
    """The elements of one JSON list, each with the line that it begins on."""
    decoder, whitespace = json.JSONDecoder(), " \t\r\n"
    position, line, counted = text.index("[") + 1, 1, 0

    def skip(position: int) -> int:
        while position < len(text) and text[position] in whitespace:
            position += 1
        return position

    position = skip(position)
    while text[position : position + 1] != "]":
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file}:{line}: not JSON ({why(error)}); the file is a list of JSON objects") from None
        yield f"{file}:{line}", value
        position = skip(position)
        if text[position : position + 1] == ",":
            position = skip(position + 1)
        elif text[position : position + 1] != "]":
            raise ValueError(
                f"{file}:{line}: not JSON (a list continues with `,` or ends with `]`); is the file cut short?"
            )


def _read_hub(source: RecordSource) -> Iterator[tuple[str, object]]:
    for number, record in enumerate(hub_splits(source.hub_id)[source.split], 1):
        yield f"{source} record {number}", dict(record)


@functools.cache
def hub_splits(hub_id: str) -> dict:
    """Split name -> records of a Hugging Face data set, downloaded or from its cache."""
    import datasets

    try:
        found = datasets.load_dataset(hub_id)
    except Exception as error:  # a network's, a script's or a file format's
        raise ValueError(f"dataset.path: {hub_id} cannot be loaded: {' '.join(str(error).split())}") from error
    if "train" not in found:
        raise ValueError(f"dataset.path: {hub_id} has no split `train`, only {', '.join(found)}")
    return found


def split_of_hub(source: RecordSource) -> RecordSource | None:
    """The held-out records that a Hugging Face data set brings along."""
    names = hub_splits(source.hub_id)
    held_out = next((name for name in HELD_OUT_SPLITS if name in names), None)
    return RecordSource(hub_id=source.hub_id, split=held_out) if held_out else None


# ---- what a record is ----


def kind_of(record: object, place: str, text_column: str | None) -> str:
    """ "messages", "prompt" or "text": which of the three forms a record has.

    Raises:
        ValueError: none of them, or one with something missing.
    """
    if not isinstance(record, dict):
        raise ValueError(f"{place}: a record is a JSON object, this is {_a(record)}")
    if text_column is not None:
        _require_text(record, text_column, place, "dataset.text_column names it")
        return "text"
    if "messages" in record:
        _require_messages(record["messages"], place)
        return "messages"
    if "prompt" in record or "completion" in record:
        for key in ("prompt", "completion"):
            _require_text(record, key, place, "a prompt goes with a completion")
        return "prompt"
    if "text" in record:
        _require_text(record, "text", place, "plain text")
        return "text"
    keys = ", ".join(f"`{key}`" for key in list(record)[:5]) or "none"
    raise ValueError(
        f"{place}: has neither `messages` nor `prompt` and `completion` nor `text` (its keys: {keys}); name the key of "
        "its text with dataset.text_column"
    )


def _require_text(record: dict, key: str, place: str, why: str) -> None:
    if key not in record:
        raise ValueError(f"{place}: has no `{key}` ({why})")
    if not isinstance(record[key], str):
        raise ValueError(f"{place}: `{key}` is {_a(record[key])}, not text")


def _require_messages(messages: object, place: str) -> None:
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{place}: `messages` must be a list of at least one message")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict):
            raise ValueError(f"{place}: message {number} is {_a(message)}, not an object with `role` and `content`")
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                found = f"is {_a(message[key])}, not text" if key in message else "is missing"
                raise ValueError(f"{place}: `{key}` of message {number} {found}; a message has `role` and `content`")


def _a(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def first_problem(source: RecordSource, config) -> list[str]:
    """What is wrong with the first record, if anything; a Hugging Face data set is not asked."""
    if source.hub_id is not None:
        return []
    try:
        place, record = next(read(source))
        kind_of(record, place, config.text_column)
    except (ValueError, OSError) as error:
        return [" ".join(str(error).split())]
    return []
