"""A data set's folder as the standard library sees it: how many tokens in which files, and of which vocabulary.

`train.bin` and `val.bin` hold token ids, little-endian uint16 or uint32, bare (nanoGPT's way) or behind a header of 256
int32 (llm.c's way). `meta.json` says what the ids mean; `meta.pkl` is nanoGPT's form of it. Nothing here needs numpy,
so that `--check` can read it.
"""

from __future__ import annotations

import reprlib
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.strict_json import parsed
from data.text.config import MOST_IDS, SPLITS
from data.text.nanogpt_meta import read_meta_pickle

GPT2_VOCABULARY = 50257
WIDTHS = {"uint16": 2, "uint32": 4}  # bytes of a token
HEADER_BYTES = 256 * 4
HEADERS = {20240520: ("uint16", 1), 20240801: ("uint32", 7)}  # magic -> type of the tokens, version
OTHER_FORMATS = {
    b"\x93NUMPY": "a NumPy array (.npy)",
    b"PK\x03\x04": "a zip archive (.npz, .zip)",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"PAR1": "a Parquet table",
    b"\x89HDF\r\n": "an HDF5 file",
}


@dataclass(frozen=True)
class Split:
    """One file of tokens: `tokens` of type `dtype` (uint16 or uint32) from byte `offset` on.

    `text_bytes` is the size of the text they stand for, in UTF-8, where that is known.
    """

    path: Path
    dtype: str
    offset: int
    tokens: int
    text_bytes: int | None = None


@dataclass(frozen=True)
class Folder:
    """A data set: its files, and what is known of its vocabulary.

    `source` says where the vocabulary's size is from: meta.json, meta.pkl, dataset.vocab_size, or GPT-2, which is an
    assumption. `method` names the tokenizer (char, bpe:5000 …) where meta.json does. `symbols` are the characters in
    the order of their ids, where meta.pkl lists them.
    """

    path: Path
    vocab_size: int
    source: str
    splits: dict[str, Split]
    method: str | None = None
    symbols: list[str] | None = None

    @property
    def tokenizer_file(self) -> Path | None:
        path = self.path / "tokenizer.json"
        return path if self.source == "meta.json" and path.is_file() else None


def read_folder(path: Path, vocab_size: int | None = None) -> Folder:
    """What a folder holds.

    Args:
        vocab_size: of a folder without meta; None: GPT-2's.

    Raises:
        ValueError: a file is missing, cut off, of another format, or contradicts the meta.
    """
    if (path / "meta.json").is_file():
        return _described_by_json(path)
    method, symbols = None, None
    if (path / "meta.pkl").is_file():
        source, (vocab_size, symbols) = "meta.pkl", read_meta_pickle(path / "meta.pkl")
        method = "char" if symbols else None
    else:
        source = "dataset.vocab_size" if vocab_size else "GPT-2"
    size = vocab_size or GPT2_VOCABULARY
    bare = "uint16" if size <= 65536 else "uint32"
    splits = {name: read_split(path / f"{name}.bin", bare) for name in SPLITS}
    return Folder(path, size, source, splits, method, symbols)


def _described_by_json(path: Path) -> Folder:
    meta = read_meta(path / "meta.json")
    splits = {}
    for name in SPLITS:
        recorded = meta.get("splits", {}).get(name, {})
        split = read_split(path / f"{name}.bin", meta["dtype"], recorded.get("bytes"))
        if split.dtype != meta["dtype"]:
            raise ValueError(
                f"{split.path} has the header of {split.dtype} tokens but {path / 'meta.json'} says {meta['dtype']}; "
                "correct the meta, or prepare the data set again"
            )
        if recorded.get("tokens", split.tokens) != split.tokens:
            raise ValueError(
                f"{split.path} holds {split.tokens:,} tokens but {path / 'meta.json'} says {recorded['tokens']:,}; it "
                "is "
                "cut off or replaced: prepare the data set again"
            )
        splits[name] = split
    return Folder(path, meta["vocab_size"], "meta.json", splits, meta.get("tokenizer"))


def read_meta(path: Path) -> dict[str, Any]:
    """The content of a meta.json, each value of its right type."""
    try:
        meta = parsed(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({' '.join(str(error).split())})") from None
    if not isinstance(meta, dict) or meta.get("version") != 1:
        found = meta.get("version") if isinstance(meta, dict) else meta
        raise ValueError(f"{path}: version is {reprlib.repr(found)}, expected 1; prepare the data set again")
    size, dtype, splits = meta.get("vocab_size"), meta.get("dtype"), meta.get("splits", {})
    if not _is_count(size, 1):
        raise ValueError(f"{path}: vocab_size is {reprlib.repr(size)}, not a positive whole number")
    if size > MOST_IDS:
        raise ValueError(
            f"{path}: vocab_size is {reprlib.repr(size)}; token ids are uint32, of which {MOST_IDS:,} exist"
        )
    if not isinstance(dtype, str) or dtype not in WIDTHS:
        raise ValueError(f"{path}: dtype is {reprlib.repr(dtype)}; token files are uint16 or uint32")
    if dtype == "uint16" and size > 65536:
        raise ValueError(f"{path}: dtype is uint16, which holds 65,536 ids, but vocab_size is {size:,}")
    if not isinstance(meta.get("tokenizer"), str | None):
        raise ValueError(f"{path}: tokenizer is {reprlib.repr(meta['tokenizer'])}, not a name")
    for name in SPLITS if isinstance(splits, dict) else ():
        recorded = splits.get(name, {})
        if not isinstance(recorded, dict) or not all(_is_count(recorded.get(key, 0)) for key in ("tokens", "bytes")):
            raise ValueError(f"{path}: splits.{name} is {reprlib.repr(recorded)}; expected numbers of tokens and bytes")
    if not isinstance(splits, dict):
        raise ValueError(f"{path}: splits is {reprlib.repr(splits)}, not a mapping of train and val")
    return meta


def _is_count(value: Any, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def read_split(path: Path, bare_dtype: str, text_bytes: int | None = None) -> Split:
    """One file of tokens, of type `bare_dtype` unless a header says which.

    Raises:
        ValueError: no such file, nothing in it, another format, or a length that does not fit.
    """
    if not path.is_file():
        raise ValueError(f"{path.parent} has no {path.name}; prepare the data set again, with both splits")
    size = path.stat().st_size
    if not size:
        raise ValueError(f"{path} is empty; prepare the data set again, with a text long enough for both splits")
    try:
        with path.open("rb") as stream:
            start = stream.read(HEADER_BYTES)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    _refuse_other_formats(path, start)
    header = _read_header(path, start, size)
    if header is not None:
        return Split(path, header[0], HEADER_BYTES, header[1], text_bytes)
    if size % WIDTHS[bare_dtype]:
        raise ValueError(
            f"{path} has {size:,} bytes, which is no whole number of {bare_dtype} tokens ({WIDTHS[bare_dtype]} bytes "
            "each); it is cut off, or not a file of tokens"
        )
    return Split(path, bare_dtype, 0, size // WIDTHS[bare_dtype], text_bytes)


def _refuse_other_formats(path: Path, start: bytes) -> None:
    found = next((what for magic, what in OTHER_FORMATS.items() if start.startswith(magic)), None)
    if _is_gzip(start):
        found = "compressed by gzip"
    if found:
        raise ValueError(
            f"{path} is {found}, not bare token ids; write them as little-endian uint16 or uint32, or prepare the text "
            "with prepare.py"
        )


def _is_gzip(start: bytes) -> bool:
    """gzip's three bytes could be two tokens of GPT-2's, so its stream must decompress too."""
    if not start.startswith(b"\x1f\x8b\x08"):
        return False
    try:
        zlib.decompressobj(31).decompress(start)
    except zlib.error:
        return False
    return True


def _read_header(path: Path, start: bytes, size: int) -> tuple[str, int] | None:
    """(type, number of tokens) of a file with llm.c's header; None for bare tokens."""
    if len(start) < 12:
        return None
    magic, version, tokens = struct.unpack_from("<3i", start)
    if magic not in HEADERS:
        # A date, then a small number: a header of that family, though of a kind that holds no plain tokens.
        if 20200101 <= magic <= 20991231 and 0 < version < 100:
            known = " and ".join(f"{each} ({dtype})" for each, (dtype, _) in HEADERS.items())
            raise ValueError(f"{path} has a header with magic {magic}; those of token files are {known}")
        return None
    dtype, expected = HEADERS[magic]
    if version != expected:
        raise ValueError(f"{path} has a header of magic {magic} and version {version}; version {expected} can be read")
    whole = HEADER_BYTES + tokens * WIDTHS[dtype]
    if size != whole:
        raise ValueError(
            f"{path}: its header counts {tokens:,} {dtype} tokens, which make {whole:,} bytes, but the file has "
            f"{size:,}; it is cut off or damaged"
        )
    if not tokens:
        raise ValueError(f"{path} is empty: its header counts 0 tokens")
    return dtype, tokens
