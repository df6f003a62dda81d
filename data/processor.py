"""What a kind of data adds so that `predict.py` works for it: a `Processor`.

A data module exports its subclass as `Processor`; it works from a checkpoint's folder alone, without the training data.
For flags of its own it exports their dataclass as `PredictFlags`: fields by `storage.config_keys.key`, importable
without torch; `without_effect(output)`, if there is one, returns flags that change nothing beside the others and with
this output file (None: standard output), and why.
"""

from __future__ import annotations

import contextlib
import csv
import io
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, Self

from data.files import files_below
from data.strict_json import open_maybe_compressed
from storage import safe_read


@dataclass(frozen=True)
class Source:
    """One input file.

    Attributes:
        name: In the output: the path below the folder that was named, or the file's name.
        path: None: standard input.
    """

    name: str
    path: Path | None

    def __str__(self) -> str:
        return "<stdin>" if self.path is None else str(self.path)

    @contextlib.contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The content as a binary stream, decompressed if its name ends with .gz; ValueError if that is damaged."""
        if self.path is None:
            yield sys.stdin.buffer
            return
        with open_maybe_compressed(self.path) as stream:
            yield stream

    @contextlib.contextmanager
    def local_file(self) -> Iterator[Path]:
        """A path to the content, for libraries that need one; standard input goes to a temporary file."""
        if self.path is not None:
            yield self.path
            return
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "stdin")
            file.write_bytes(sys.stdin.buffer.read())
            try:
                yield file
            except ValueError as error:
                raise ValueError(str(error).replace(str(file), str(self))) from None


class Item(NamedTuple):
    """One raw input; `place` is what an error says of it: FILE:LINE, or FILE and a key."""

    source: Source
    place: str
    raw: Any


class Writer(Protocol):
    """Writes records in the order of their inputs."""

    def write(self, source: Source, record: Any) -> None: ...

    def drop(self, source: Source) -> None:
        """With WHOLE_FILES: leave out what was written of a file that turned out to have an error."""

    def close(self) -> None: ...


class CsvWriter:
    """Writes rows to a CSV file or stream, below a header if there is one."""

    def __init__(self, target: Path | BinaryIO, header: list[str] | None = None):
        self.is_file = isinstance(target, Path)
        self.stream = target.open("w+b") if self.is_file else target
        self.text = io.TextIOWrapper(self.stream, encoding="utf-8", newline="", write_through=True)
        self.rows = csv.writer(self.text, lineterminator="\n")
        if header is not None:
            self.rows.writerow(header)

    def write(self, source: Source, record: Any) -> None:
        self.rows.writerow(record)

    def close(self) -> None:
        self.text.flush()
        if self.is_file:
            self.text.close()
        else:
            self.text.detach()


def saved_json(folder: Path, name: str) -> Any:
    """The content of a file that a run saves beside its model.

    Raises:
        ValueError: it cannot be read. It is never guessed: without it every prediction would be wrong.
    """
    try:
        return safe_read.read_json(folder / name)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{folder / name} cannot be read ({reason}); restore it from the run") from None


class Processor:
    """Raw input <-> model input and output.

    `predict.py` reads a file's items, encodes each before it reads the next, and predicts batches of them.

    Attributes:
        SUFFIXES: Endings of the files that `--input DIR` reads.
        LISTS: Those of them that list other inputs: of a folder that has such inputs they are not read.
        WHOLE_FILES: A file with one bad item is left out as a whole.
        TO_STDOUT: Records are text, which may go to standard output.
        SERVES: `--serve` works: there is a `session`.
        OUTPUTS: Endings of the outputs that `writer` can write, "" for a folder; empty: any file.
    """

    SUFFIXES: tuple[str, ...] = ()
    LISTS: tuple[str, ...] = ()
    WHOLE_FILES = False
    TO_STDOUT = False
    SERVES = False
    OUTPUTS: tuple[str, ...] = ()

    @property
    def reads_back(self) -> bool:
        """Whether encoding an input needs the model's output for the one before it: a batch is a single input."""
        return False

    @classmethod
    def from_pretrained(cls, folder: Path, config: Any, process: Any, flags: Any = None) -> Self:
        """Build from the files beside a saved model.

        Args:
            folder: A checkpoint or a run's folder.
            config: The data's `Config` in run.yaml.
            process: The run's process parameters.
            flags: The module's `PredictFlags`; None: their defaults.

        Raises:
            ValueError: a file is missing or damaged.
        """
        raise NotImplementedError

    def save_pretrained(self, folder: Path) -> None:
        """Write what `from_pretrained` needs beyond `Bundle.files`."""

    def count(self, source: Source) -> int:
        """Items of a file, for the progress bar; an estimate is enough. Never called for standard input."""
        raise NotImplementedError

    def recordings(self, source: Source) -> list[Source]:
        """What `read` is called for: the file itself, or the recordings that it lists, which are read in this order."""
        return [source]

    def read(self, source: Source) -> Iterator[Item]:
        """The items of a file; ValueError or OSError if it cannot be read (further)."""
        raise NotImplementedError

    def encode(self, raw: Any) -> Any:
        """The model's input for one raw item; ValueError, without the place, if it is malformed."""
        raise NotImplementedError

    def check(self, model: Any, inputs: Any) -> None:
        """ValueError if this model cannot take one item's input."""

    def predict(self, model: Any, inputs: list[Any]) -> Any:
        """The model's output for a batch of inputs. It must not depend on which inputs share the batch."""
        raise NotImplementedError

    def decode(self, outputs: Any) -> list[Any]:
        """One record for each input of the batch."""
        raise NotImplementedError

    def writer(self, target: Path | BinaryIO) -> Writer:
        """A writer to a file or folder of the output's name, not there yet, or with TO_STDOUT to a stream."""
        raise NotImplementedError

    def session(self, model: Any) -> Any:
        """The policy at one robot, for a connection of `--serve`.

        Its `reset()` forgets earlier observations: an episode begins. `act(observation)` returns arrays by name; it
        raises ValueError if the model cannot read the observation.
        """
        raise NotImplementedError

    def metadata(self, model: Any) -> dict[str, Any]:
        """What `--serve` sends to each new connection, as plain values."""
        return {}


def input_sources(given: str, suffixes: tuple[str, ...], lists: tuple[str, ...] = ()) -> tuple[list[Source], int]:
    """The files that `--input` names, and how many other files of a folder are not read; `-` is standard input.

    A folder is searched recursively, linked folders too; files are sorted by path, hidden ones are left out.

    Args:
        suffixes, lists: `Processor.SUFFIXES`, `Processor.LISTS`, in lower case; names of files may have capitals.

    Raises:
        ValueError: there is no such path, or nothing of this kind in it.
    """
    kinds = ", ".join(f"*{suffix}" for suffix in suffixes)
    if given == "-":
        return [Source("-", None)], 0
    path = Path(given).expanduser()
    if not path.exists():
        raise ValueError(f"`--input {given}` does not exist")
    if not path.is_dir():
        if not path.name.lower().endswith(suffixes):
            raise ValueError(f"`--input {given}` is none of {kinds}, which this task reads")
        return [Source(path.name, path)], 0
    found = files_below(path)
    files = [Source(file.relative_to(path).as_posix(), file) for file in found if file.name.lower().endswith(suffixes)]
    if not files:
        raise ValueError(f"`--input {given}`: the folder has no file {kinds}")
    read = [file for file in files if not file.name.lower().endswith(lists)] if lists else files
    read = read or files
    return read, len(found) - len(read)
