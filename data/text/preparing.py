"""A text becomes a data set: surveyed, its tokenizer made or opened, tokenized in parallel, published.

The memory this takes depends neither on the text's size nor on the number of documents' tokens: pieces are read in
order, tokenized by worker processes, and appended in order. Whether it was interrupted, and how many workers there
were, cannot be seen in the result.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from data.text import prepare_workers
from data.text.pieces import Piece, Share, Symbols
from data.text.prepare_folder import META, finished, publish, read_json, staging, write_json
from data.text.prepare_tokens import SPLITS, Output, chunk_encoder, chunks_of
from data.text.sources import open_source
from data.text.tokenizers import (
    bytes_tokenizer,
    char_tokenizer,
    check_word,
    open_tokenizer,
    train_bpe,
    vocabulary_size,
)
from storage.atomic import sync

VERSION = 1
JOURNAL_SECONDS = 1.0
BPE_SAMPLE_BYTES = 2**26  # text that a new BPE vocabulary is learnt from; taken evenly from all of it
BYTES_A_WORKER = 2**21  # below this a worker process costs more than it saves


@dataclass(frozen=True)
class PreparationSettings:
    """All that decides the result, besides the text itself."""

    text: str
    """a file, a folder, or a dataset of the hub"""
    tokenizer: str
    """char, bytes, bpe:N, or a path or id"""
    val_fraction: float = 0.1
    val_text: str | None = None
    """the validation split, where it is given apart"""
    text_column: str | None = None
    split: str | None = None
    only: str = ""
    """ending of the files of a folder"""
    without: tuple[str, ...] = ()
    """subfolders left out"""

    @property
    def share(self) -> Share:
        return "train" if self.val_text is not None else Fraction(str(self.val_fraction))


def plain(settings: dict) -> dict:
    """The settings as JSON; an existing path is absolute, so that it is the same from every working folder."""
    settings = json.loads(json.dumps(settings))
    for key in ("text", "val_text", "tokenizer"):
        if settings.get(key) and os.path.exists(os.path.expanduser(settings[key])):
            settings[key] = str(Path(settings[key]).expanduser().absolute())
    return settings


def prepare(
    folder: Path,
    settings: PreparationSettings,
    num_workers: int | None = None,
    overwrite: bool = False,
    report: Callable[[str], None] = print,
) -> None:
    """Makes the folder, or finds it made with the same settings of the same text.

    Args:
        num_workers: tokenizing processes; None: one a core, fewer for a small text.
        overwrite: replace a folder that was prepared from something else.
        report: takes the lines for people.

    Raises:
        ValueError: the input cannot be used, or the folder is another's; one line. Nothing is left behind.
        KeyboardInterrupt: passed on; the same call continues later.
    """
    check_word(settings.tokenizer)
    sources = [open_source(settings.text, settings.text_column, settings.split, settings.only, settings.without)]
    shares = [settings.share]
    if settings.val_text is not None:
        sources.append(open_source(settings.val_text, settings.text_column))
        shares.append("val")
    settings_, identities = plain(asdict(settings)), [source.identity() for source in sources]
    made_of = {"version": VERSION, "settings": settings_, "sources": json.loads(json.dumps(identities))}
    finished(folder)  # refuses a folder of another's before anything is made
    with staging(folder) as work:
        if not overwrite and is_prepared(folder, settings_, made_of["sources"]):
            shutil.rmtree(work)
            report(f"{folder} is already prepared: {describe(folder)}")
            return
        parts = list(zip(sources, shares, strict=True))
        Preparation(work, folder.name, settings, parts, made_of, report).run(num_workers)
        publish(work, folder, made_of)
    report(f"{folder}: {describe(folder)}")


def is_prepared(folder: Path, asked: dict, sources: list | None = None) -> bool:
    """Whether the folder is finished, with the settings that were asked for and from the same text.

    Args:
        asked: `plain` settings, or some of them.
        sources: the sources' identities; None: any.

    Raises:
        ValueError: it is finished, but otherwise than asked for.
    """
    found = finished(folder)
    if found is None:
        return False
    if not found["whole"]:
        raise ValueError(f"{folder} was changed after it was prepared; --overwrite prepares it again")
    there = found.get("settings", {})
    for key, value in asked.items():
        if there.get(key) != value:
            raise ValueError(
                f"{folder} was prepared with {key} {there.get(key)}, not {value}; --overwrite prepares it again"
            )
    if sources is not None and sources != found.get("sources"):
        raise ValueError(f"{folder} was prepared before {there['text']} changed; --overwrite prepares it again")
    return True


def describe(folder: Path) -> str:
    """`1,003,854 train and 111,540 val tokens of char, vocabulary 65`."""
    meta = json.loads((folder / META).read_text(encoding="utf-8"))
    counts = " and ".join(f"{meta['splits'][split]['tokens']:,} {split}" for split in SPLITS)
    return f"{counts} tokens of {meta['tokenizer']}, vocabulary {meta['vocab_size']:,}"


class Preparation:
    """One data set in the making, in its staging folder."""

    def __init__(
        self,
        work: Path,
        name: str,
        settings: PreparationSettings,
        parts: list[tuple[Any, Share]],
        made_of: dict,
        report: Callable,
    ):
        self.work, self.data, self.name, self.settings, self.parts = work, work / "data", name, settings, parts
        self.made_of, self.report = made_of, report
        self.documents = any(source.documents for source, _ in parts)

    def run(self, num_workers: int | None) -> None:
        """Every stage that is not done yet."""
        began = time.monotonic()
        self.journal = self._opened_journal()
        tokenizer = self._opened_tokenizer()
        self.survey = self._surveyed()
        tokenizer = tokenizer or self._learnt_tokenizer()
        self.dtype = np.dtype("<u2" if vocabulary_size(tokenizer) <= 2**16 else "<u4")
        self.separator = tokenizer.eos_token_id if self.documents else None
        self._tokenize(num_workers)
        self._check_splits()
        self._write_meta(vocabulary_size(tokenizer))
        size = sum(each["bytes"] for each in self.journal["written"].values())
        self.report(f"{self.name}: {size:,} bytes of text in {time.monotonic() - began:.1f} s")

    def _opened_journal(self) -> dict:
        """The journal of an interrupted preparation of the same, or a new one."""
        found = read_json(self.work / "journal.json")
        same = found is not None and all(found.get(key) == value for key, value in self.made_of.items())
        if same and all(
            (self.data / f"{split}.bin").is_file()
            and (self.data / f"{split}.bin").stat().st_size >= found["written"][split]["size"]
            for split in SPLITS
        ):
            self.report(f"{self.name}: going on after {found['read']:,} bytes of text")
            return found
        if found is not None:
            self.report(
                f"{self.name}: the text or the settings changed since the interruption: starting from the beginning"
            )
        for path in self.work.iterdir():
            if path.name != "lock":
                _remove(path)
        self.data.mkdir()
        for split in SPLITS:
            (self.data / f"{split}.bin").touch()
        journal = {
            **self.made_of,
            "part": 0,
            "position": None,
            "read": 0,
            "written": {split: {"tokens": 0, "bytes": 0, "size": 0} for split in SPLITS},
        }
        write_json(self.work / "journal.json", journal)
        return journal

    def _surveyed(self) -> list[dict]:
        """One pass over each source: what it holds, where it is split, and which symbols occur."""
        found = read_json(self.work / "survey.json")
        if found is None:
            symbols = Symbols() if self.settings.tokenizer == "char" else None
            found = {"parts": [source.survey(share, symbols) for source, share in self.parts]}
            if symbols is not None:
                if self.documents:
                    symbols.add("\n")  # between them
                found["symbols"] = symbols.sorted()
            write_json(self.work / "survey.json", found)
            for note in (part.pop("note", "") for part in found["parts"]):
                if note:
                    self.report(note)
        self.symbols = found.get("symbols")
        return found["parts"]

    def _opened_tokenizer(self) -> Any:
        """The one that was named, or that was saved before an interruption; None: still to be made from the text."""
        word = self.settings.tokenizer
        if self.journal.get("tokenizer"):
            return open_tokenizer(str(self.data))
        if word in ("char", "bytes") or word.startswith("bpe:"):
            return None
        return self._saved(open_tokenizer(word))

    def _learnt_tokenizer(self) -> Any:
        word = self.settings.tokenizer
        if word == "char":
            return self._saved(char_tokenizer(self.symbols))
        if word == "bytes":
            return self._saved(bytes_tokenizer())
        size = int(word.removeprefix("bpe:"))
        tokenizer = train_bpe(self._sample(), size)
        if len(tokenizer) < size:
            self.report(f"{self.name}: the text has {len(tokenizer):,} tokens to learn, not {size:,}")
        return self._saved(tokenizer)

    def _saved(self, tokenizer: Any) -> Any:
        tokenizer.save_pretrained(self.data)
        for path in self.data.iterdir():
            sync(path)
        self.journal["tokenizer"] = True
        write_json(self.work / "journal.json", self.journal)
        return tokenizer

    def _sample(self) -> Iterator[str]:
        """Every n-th piece of the training text, so that no more than BPE_SAMPLE_BYTES are learnt from."""
        every = -(-sum(source.size for source, _ in self.parts) // BPE_SAMPLE_BYTES)
        if every > 1:
            self.report(f"{self.settings.tokenizer} is learnt from every {every}th piece of the text")
        train = (piece for _, piece in self._pieces(0, None) if piece.split == "train")
        for number, piece in enumerate(train):
            if number % every == 0:
                yield piece.text.decode()

    def _pieces(self, part: int, position: list[int] | None) -> Iterator[tuple[int, Piece]]:
        """(part, piece) of all that is left."""
        for number in range(part, len(self.parts)):
            source, share = self.parts[number]
            for piece in source.pieces(self.survey[number], share, position):
                yield number, piece
            position = None

    def _tokenize(self, num_workers: int | None) -> None:
        """Appends what is left; the journal follows every second, and at an interruption."""
        total = sum(source.size for source, _ in self.parts)
        count = num_workers or max(1, min(prepare_workers.cores(), (total - self.journal["read"]) // BYTES_A_WORKER))
        start = functools.partial(chunk_encoder, self.data, self.separator, self.documents, self.dtype)
        chunks = chunks_of(self._pieces(self.journal["part"], self.journal["position"]))
        with (
            Output(self.data, self.journal["written"]) as output,
            _progress(self.name, total, self.journal["read"], self.report) as advance,
            contextlib.closing(prepare_workers.in_order(start, chunks, count)) as results,
        ):
            flushed, state = time.monotonic(), self.journal
            try:
                for chunk, tokens in results:
                    number, last = chunk[-1]
                    taken = sum(piece.advance for _, piece in chunk)
                    written = output.append(tokens, state["written"])
                    # One assignment: an interruption finds the state before the chunk or after it, never between.
                    state = {
                        **state,
                        "part": number,
                        "position": last.position,
                        "read": state["read"] + taken,
                        "written": written,
                    }
                    advance(taken)
                    if time.monotonic() - flushed >= JOURNAL_SECONDS:
                        self._flush(output, state)
                        flushed = time.monotonic()
            finally:
                self._flush(output, state)

    def _flush(self, output: Output, state: dict) -> None:
        """The tokens first: a journal never tells of tokens that a power cut could take."""
        output.flush()
        write_json(self.work / "journal.json", state)
        self.journal = state

    def _check_splits(self) -> None:
        for split in SPLITS:
            if not self.journal["written"][split]["tokens"]:
                given = self.settings.val_text if split == "val" and self.settings.val_text else self.settings.text
                raise ValueError(
                    f"the {split} split is empty: {given} gives it no text; change --val_fraction, or give --val_text"
                )

    def _write_meta(self, vocab_size: int) -> None:
        written = self.journal["written"]
        meta = {
            "version": 1,
            "vocab_size": vocab_size,
            "dtype": "uint16" if self.dtype.itemsize == 2 else "uint32",
            "tokenizer": self.settings.tokenizer,
            "source": self.settings.text,
            "splits": {split: {key: written[split][key] for key in ("tokens", "bytes")} for split in SPLITS},
        }
        (self.data / META).write_text(json.dumps(meta, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _progress(name: str, total: int, done: int, report: Callable[[str], None]) -> Iterator[Callable[[int], None]]:
    """Takes the bytes that were read: a bar on a terminal, a line each half minute in a log."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(total=total, initial=done, desc=name, unit="B", unit_scale=True) as bar:
            yield bar.update
        return
    last = time.monotonic()

    def advance(taken: int) -> None:
        nonlocal done, last
        done += taken
        if time.monotonic() - last >= 30:
            last = time.monotonic()
            report(f"{name}: {done:,} of {total:,} bytes")

    yield advance


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
