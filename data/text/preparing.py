"""Prepare a data set from a text: survey it, make or open its tokenizer, tokenize in parallel, publish.

Memory use depends neither on the size of the text nor on the number of documents. The result depends neither on
interruptions nor on the number of workers.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from data.text.pieces import Piece, Share, TextFacts
from data.text.prepare_folder import META, finished, publish, read_json, staging
from data.text.prepare_tokens import SPLITS, ChunkEncoder, Output, chunks_of
from data.text.sources import Source, open_source
from data.text.tokenizers import (
    bytes_tokenizer,
    char_tokenizer,
    check_word,
    open_tokenizer,
    train_bpe,
    vocabulary_size,
)
from storage import atomic, worker_pool

VERSION = 2
JOURNAL_SECONDS, REPORT_SECONDS = 1.0, 30.0
BPE_SAMPLE_BYTES = 2**26  # text that a new BPE vocabulary is trained on, taken evenly from all of it
ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false"}  # with a worker per core, threads only wait for one another
BYTES_PER_WORKER = 2**21  # below this a worker process costs more than it saves


@dataclass(frozen=True)
class PreparationSettings:
    """All that decides the result, besides the text itself.

    Attributes:
        text: A file, a folder, or a dataset of the hub.
        tokenizer: char, bytes, bpe:N, or a path or id.
        val_text: The validation split, if it is given apart.
        only: Ending of the files of a folder.
        without: Subfolders that are left out.
        newlines: `keep`, or `lf` to turn all line ends into line feeds.
    """

    text: str
    tokenizer: str
    val_fraction: float = 0.1
    val_text: str | None = None
    text_column: str | None = None
    split: str | None = None
    only: str = ""
    without: tuple[str, ...] = ()
    newlines: str = "keep"

    def sources(self) -> list[tuple[Source, Share]]:
        """Return each source of text with its share."""
        text = open_source(self.text, self.text_column, self.split, self.only, self.without)
        sources = [(text, Fraction(str(self.val_fraction)))]
        if self.val_text is not None:
            sources = [(text, "train"), (open_source(self.val_text, self.text_column), "val")]
        for source, _ in sources:
            source.newlines = self.newlines
        return sources


def plain(settings: dict) -> dict:
    """Return settings as JSON; an existing path is absolute, so that it is the same from every working folder."""
    settings = json.loads(json.dumps(settings))
    for key in ("text", "val_text", "tokenizer"):
        if settings.get(key) and os.path.exists(os.path.expanduser(settings[key])):
            settings[key] = str(Path(os.path.expanduser(settings[key])).absolute())
    return settings


def prepare(
    folder: Path,
    settings: PreparationSettings,
    num_workers: int | None = None,
    overwrite: bool = False,
    report: Callable[[str], None] = print,
) -> None:
    """Make the folder, or find it made with the same settings of the same text.

    Args:
        num_workers: Tokenizing processes; None: one per core, fewer for a small text.
        overwrite: Replace a folder that was prepared from something else.
        report: Takes the lines for users.

    Raises:
        ValueError: The input cannot be used, or the folder holds something else; one line. Nothing is left behind.
        KeyboardInterrupt: Passed on; the same call continues later.
    """
    check_word(settings.tokenizer)
    sources = settings.sources()
    identities = json.loads(json.dumps([source.identity() for source, _ in sources]))
    made_of = {"version": VERSION, "settings": plain(asdict(settings)), "sources": identities}
    finished(folder)  # refuses a folder with other files before anything is made
    with staging(folder) as work:
        if not overwrite and is_prepared(folder, made_of["settings"], identities):
            atomic.discard(work)
            report(f"{folder} is already prepared: {describe(folder)}")
            return
        Preparation(work, folder.name, settings, sources, made_of, report).run(num_workers)
        publish(work, folder, made_of)
    report(f"{folder}: {describe(folder)}")


def is_prepared(folder: Path, asked: dict, sources: list | None = None) -> bool:
    """Return whether the folder is finished, with the settings that were asked for and from the same text.

    Args:
        asked: `plain` settings, or some of them.
        sources: The sources' identities; None: any.

    Raises:
        ValueError: It is finished, but differs from what was asked for.
    """
    record = finished(folder)
    if record is None:
        return False
    remedy = "--overwrite prepares it again"
    if not record["whole"]:
        raise ValueError(f"{folder} was changed after it was prepared; {remedy}")
    earlier = {"newlines": "keep", **record.get("settings", {})}
    for key, value in asked.items():
        if earlier.get(key) != value:
            raise ValueError(f"{folder} was prepared with {key} {earlier.get(key)}, not {value}; {remedy}")
    if sources is not None and sources != record.get("sources"):
        raise ValueError(f"{folder} was prepared before {earlier['text']} changed; {remedy}")
    return True


def describe(folder: Path) -> str:
    """Return `1,003,854 train and 111,540 val tokens of char, vocabulary 65`."""
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
        sources: list[tuple[Source, Share]],
        made_of: dict,
        report: Callable,
    ):
        self.work, self.data, self.name, self.settings, self.sources = work, work / "data", name, settings, sources
        self.made_of, self.report = made_of, report
        self.documents = any(source.documents for source, _ in sources)
        self.size = sum(source.size for source, _ in sources)

    def run(self, num_workers: int | None) -> None:
        """Do every stage that is not done yet."""
        began = time.monotonic()
        self.journal = self._open_journal()
        tokenizer = self._open_tokenizer()
        self.surveys, self.symbols = self._survey()
        tokenizer = tokenizer or self._save(self._make_tokenizer())
        vocab_size = vocabulary_size(tokenizer)
        dtype = np.dtype("<u2" if vocab_size <= 2**16 else "<u4")
        separator = tokenizer.eos_token_id if self.documents else None
        self._tokenize(ChunkEncoder(self.data, separator, self.documents, dtype), num_workers)
        written = self.journal["written"]
        for split in SPLITS:
            if not written[split]["tokens"]:
                text = self.settings.val_text if split == "val" and self.settings.val_text else self.settings.text
                remedy = "change --val_fraction, or give --val_text"
                raise ValueError(f"the {split} split is empty: {text} gives it no text; {remedy}")
        self._write_meta(vocab_size, dtype)
        self.report(f"{self.name}: {self._done(written):,} bytes of text in {time.monotonic() - began:.1f} s")

    @staticmethod
    def _done(written: dict) -> int:
        return sum(split["bytes"] for split in written.values())

    def _open_journal(self) -> dict:
        """The journal of an interrupted preparation of the same text with the same settings, or a new one."""
        journal = read_json(self.work / "journal.json")
        if journal is not None and all(journal.get(key) == value for key, value in self.made_of.items()):
            self.report(f"{self.name}: going on after {self._done(journal['written']):,} bytes of text")
            return journal
        if journal is not None:
            self.report(
                f"{self.name}: the text or the settings changed since the interruption: starting from the beginning"
            )
        for path in self.work.iterdir():
            atomic.discard(path)
        self.data.mkdir()
        for split in SPLITS:
            (self.data / f"{split}.bin").touch()
        written = {split: {"tokens": 0, "bytes": 0, "size": 0} for split in SPLITS}
        journal = {**self.made_of, "pieces": 0, "written": written}
        atomic.write_json(self.work / "journal.json", journal)
        return journal

    def _survey(self) -> tuple[list[dict], list[str]]:
        """One pass over each source: what it holds and where it is split; and all symbols, for a char tokenizer."""
        facts = TextFacts(with_symbols=self.settings.tokenizer == "char")
        parts = [source.survey(share, facts) for source, share in self.sources]
        if self.documents:
            facts.add("\n")  # between them
        for note in filter(None, (part.get("note") for part in parts)):
            self.report(note)
        return parts, facts.symbols()

    def _open_tokenizer(self) -> Any:
        """The one that was named, or that was saved before an interruption; None: still to be made from the text."""
        word = self.settings.tokenizer
        if self.journal.get("tokenizer"):
            return open_tokenizer(str(self.data))
        if word in ("char", "bytes") or word.startswith("bpe:"):
            return None
        return self._save(open_tokenizer(word))

    def _make_tokenizer(self) -> Any:
        word = self.settings.tokenizer
        if word == "char":
            return char_tokenizer(self.symbols)
        if word == "bytes":
            return bytes_tokenizer()
        size = int(word.removeprefix("bpe:"))
        tokenizer = train_bpe(self._sample(), size)
        if len(tokenizer) < size:
            self.report(f"{self.name}: the text has {len(tokenizer):,} tokens to learn, not {size:,}")
        return tokenizer

    def _save(self, tokenizer: Any) -> Any:
        tokenizer.save_pretrained(self.data)
        atomic.sync_tree(self.data)
        self.journal["tokenizer"] = True
        atomic.write_json(self.work / "journal.json", self.journal)
        return tokenizer

    def _sample(self) -> Iterator[str]:
        """Every n-th piece of the training text, so that no more than BPE_SAMPLE_BYTES are learnt from."""
        every = -(-self.size // BPE_SAMPLE_BYTES)
        if every > 1:
            self.report(f"{self.settings.tokenizer} is learnt from every {every}th piece of the text")
        train = (piece.text for piece in self._pieces() if piece.split == "train")
        return itertools.islice(train, 0, None, every)

    def _pieces(self) -> Iterator[Piece]:
        for (source, share), survey in zip(self.sources, self.surveys, strict=True):
            yield from source.pieces(survey, share)

    def _tokenize(self, encoder: ChunkEncoder, num_workers: int | None) -> None:
        """Append what is left; the journal follows every second, and at an interruption."""
        from tqdm import tqdm

        begin = self._done(self.journal["written"])
        count = num_workers or max(1, min(len(os.sched_getaffinity(0)), (self.size - begin) // BYTES_PER_WORKER))
        # Reading is much faster than tokenizing: what is done already is read again and skipped.
        chunks = chunks_of(itertools.islice(self._pieces(), self.journal["pieces"], None))
        with (
            Output(self.data, self.journal["written"]) as output,
            # `disable=None`: on a terminal only
            tqdm(total=self.size, initial=begin, desc=self.name, unit="B", unit_scale=True, disable=None) as progress,
            contextlib.closing(worker_pool.run(encoder, chunks, count if count > 1 else 0, ONE_THREAD)) as results,
        ):
            flushed, state = time.monotonic(), self.journal
            reported = flushed
            try:
                for chunk, tokens in results:
                    written = output.append(tokens, state["written"])
                    # One assignment: an interruption finds the state before the chunk or after it, never between.
                    state = {**state, "pieces": state["pieces"] + len(chunk), "written": written}
                    progress.update(sum(size for _, size in tokens.values()))
                    if time.monotonic() - flushed >= JOURNAL_SECONDS:
                        self._flush(output, state)
                        flushed = time.monotonic()
                    if progress.disable and time.monotonic() - reported >= REPORT_SECONDS:
                        self.report(f"{self.name}: {self._done(written):,} of {self.size:,} bytes")
                        reported = time.monotonic()
            finally:
                self._flush(output, state)

    def _flush(self, output: Output, state: dict) -> None:
        """Write the tokens first: a journal must not count tokens that a power cut could take."""
        output.flush()
        atomic.write_json(self.work / "journal.json", state)
        self.journal = state

    def _write_meta(self, vocab_size: int, dtype: np.dtype) -> None:
        written = self.journal["written"]
        meta = {
            "version": 1,
            "vocab_size": vocab_size,
            "dtype": "uint16" if dtype.itemsize == 2 else "uint32",
            "tokenizer": self.settings.tokenizer,
            "source": self.settings.text,
            "newlines": self.settings.newlines,
            "splits": {split: {key: written[split][key] for key in ("tokens", "bytes")} for split in SPLITS},
        }
        (self.data / META).write_text(json.dumps(meta, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
