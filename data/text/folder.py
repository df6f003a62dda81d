"""Read what a data set's folder holds: how many tokens in which files, and of which vocabulary; check that several fit.

`train.bin` and `val.bin` hold token ids, little-endian uint16 or uint32, bare (nanoGPT's way) or behind a header of 256
int32 (llm.c's way). `meta.json` says what the ids mean; `meta.pkl` is nanoGPT's form of it. Nothing here needs numpy,
so that `--check` can read it.
"""

from __future__ import annotations

import io
import os
import pickle
import re
import reprlib
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.strict_json import parsed
from data.text.config import MOST_IDS, SPLITS, Config

GPT2_VOCABULARY = 50257
WIDTHS = {"uint16": 2, "uint32": 4}  # bytes of a token
HEADER_BYTES = 256 * 4
NUMPY = (b"\x93NUMPY", b"PK\x03\x04")  # first bytes of .npy and .npz
HEADERS = {20240520: ("uint16", 1), 20240801: ("uint32", 7)}  # magic -> type of the tokens, version


@dataclass(frozen=True)
class Split:
    """One file of tokens: `tokens` of type `dtype` (uint16 or uint32) from byte `offset` on.

    `text_bytes` is the size of the text they stand for, in UTF-8, if that is known.
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
    assumption. `method` names the tokenizer (char, bpe:5000 …) if meta.json does. `symbols` are the characters in the
    order of their ids, if meta.pkl lists them.
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
    """Return what a folder holds.

    Args:
        vocab_size: Of a folder without meta; None: GPT-2's.

    Raises:
        ValueError: A file is missing, cut off, or contradicts the meta.
    """
    if (path / "meta.json").is_file():
        return _described_by_json(path)
    method, symbols, source = None, None, "dataset.vocab_size" if vocab_size else "GPT-2"
    if (path / "meta.pkl").is_file():
        source, (vocab_size, symbols) = "meta.pkl", read_meta_pickle(path / "meta.pkl")
        method = "char" if symbols else None
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
        expected = (meta["dtype"], recorded.get("tokens", split.tokens))
        if (split.dtype, split.tokens) != expected:
            raise ValueError(
                f"{split.path} holds {split.tokens:,} {split.dtype} tokens but {path / 'meta.json'} says "
                f"{expected[1]:,} {expected[0]}; it is cut off or replaced: prepare the data set again"
            )
        splits[name] = split
    return Folder(path, meta["vocab_size"], "meta.json", splits, meta.get("tokenizer"))


def read_meta(path: Path) -> dict[str, Any]:
    """Return the content of a meta.json, each value of its right type."""
    try:
        meta = parsed(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({' '.join(str(error).split())})") from None
    if not isinstance(meta, dict):
        raise ValueError(f"{path} is {reprlib.repr(meta)}, not an object; prepare the data set again")
    size, dtype, splits = meta.get("vocab_size"), meta.get("dtype"), meta.get("splits", {})
    counts = [splits.get(name, {}) for name in SPLITS] if isinstance(splits, dict) else []
    expected = {
        "version": (meta.get("version") == 1, "1"),
        "vocab_size": (_is_count(size, 1, MOST_IDS), f"1 to {MOST_IDS:,}"),
        "dtype": (
            dtype == "uint32" or dtype == "uint16" and _is_count(size, 1, 65536),
            "uint32, or uint16 up to 65,536 ids",
        ),
        "splits": (
            counts and all(_is_count(count.get(key, 0)) for count in counts for key in ("tokens", "bytes")),
            "numbers of `tokens` and `bytes` of train and val",
        ),
    }
    for key, (is_right, value) in expected.items():
        if not is_right:
            raise ValueError(
                f"{path}: {key} is {reprlib.repr(meta.get(key))}; expected {value}: prepare the data set again"
            )
    return meta


def _is_count(value: Any, least: int = 0, most: int = 2**63) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


class _PlainUnpickler(pickle.Unpickler):
    """Reads numbers, texts, lists and dicts. A pickle is a program that may call any function it can import."""

    def find_class(self, module: str, name: str) -> Any:
        raise ValueError(f"it asks for {module}.{name}")


def read_meta_pickle(path: Path) -> tuple[int, list[str] | None]:
    """Return (vocabulary size, characters in the order of their ids); None for the latter if ids are not characters.

    Raises:
        ValueError: The file holds more than plain values, or no consistent vocabulary.
    """
    try:
        meta = _PlainUnpickler(io.BytesIO(path.read_bytes())).load()
    except Exception as error:  # a damaged pickle may raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{path} is not read: {reason}; only plain dicts, lists, texts and numbers are. Write a meta.json instead"
        ) from None
    size = meta.get("vocab_size") if isinstance(meta, dict) else None
    if not _is_count(size, 1, MOST_IDS):
        raise ValueError(f"{path} has no vocab_size from 1 to {MOST_IDS:,}; write a meta.json instead")
    table = meta.get("itos")
    table = dict(enumerate(table)) if isinstance(table, list) else table
    if table is None:
        return size, None
    if not isinstance(table, dict) or not all(number in table for number in range(min(size, len(table) + 1))):
        raise ValueError(f"{path}: itos does not list the ids 0 to {size - 1} of vocab_size {size}; correct it")
    symbols = [table[number] for number in range(size)]
    # Half a character (a surrogate) is none.
    are_characters = all(isinstance(s, str) and re.fullmatch("[^\ud800-\udfff]", s, re.DOTALL) for s in symbols)
    return size, symbols if are_characters and len(set(symbols)) == size else None


def read_split(path: Path, bare_dtype: str, text_bytes: int | None = None) -> Split:
    """Return one file of tokens, of type `bare_dtype` unless a header says which.

    Raises:
        ValueError: No such file, nothing in it, or a length that does not fit.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            start = stream.read(HEADER_BYTES)
    except FileNotFoundError:
        raise ValueError(f"{path.parent} has no {path.name}; prepare the data set again, with both splits") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    if start.startswith(NUMPY):
        raise ValueError(f"{path} is a NumPy file (.npy, .npz), not bare token ids; write them with `array.tofile`")
    dtype, offset, tokens = _read_header(path, start) or (bare_dtype, 0, size // WIDTHS[bare_dtype])
    if size != offset + tokens * WIDTHS[dtype]:
        counted = (
            f"its header counts {tokens:,} {dtype} tokens" if offset else f"that is no whole number of {dtype} tokens"
        )
        raise ValueError(f"{path} has {size:,} bytes, but {counted}; it is cut off, or not a file of tokens")
    if not tokens:
        raise ValueError(f"{path} is empty; prepare the data set again, with a text long enough for both splits")
    return Split(path, dtype, offset, tokens, text_bytes)


def _read_header(path: Path, start: bytes) -> tuple[str, int, int] | None:
    """(type, offset, number of tokens) of a file with llm.c's header; None for bare tokens."""
    magic, version, tokens = struct.unpack_from("<3i", start) if len(start) >= 12 else (None, 0, 0)
    if magic not in HEADERS:
        return None
    dtype, expected = HEADERS[magic]
    if version != expected:
        raise ValueError(f"{path} has a header of magic {magic} and version {version}; version {expected} can be read")
    return dtype, HEADER_BYTES, tokens


# ---- whether several folders fit one another and the configuration ----


def disagreements(config: Config, folders: list[Folder]) -> list[str]:
    """Return one line for each reason why the folders cannot be used together or with these settings."""
    problems = [*_unused_vocabulary(config, folders), *_too_short(config, folders)]
    first, others = folders[:1], folders[1:]
    if config.mode == "multicontext":
        problems += [line for one in first for other in others for line in _unaligned(config, one, other)]
    elif config.mode == "multidataset" and not config.separate_embeddings:
        problems += [line for one in first for other in others for line in _foreign_tokens(config, one, other)]
    return problems


def _unused_vocabulary(config: Config, folders: list[Folder]) -> list[str]:
    described = [folder for folder in folders if folder.source.startswith("meta")]
    if config.vocab_size is None or not folders or len(described) < len(folders):
        return []
    folder = described[0]
    return [
        f"{config.named('vocab_size')} {config.vocab_size} has no effect: {folder.path / folder.source} says "
        f"{folder.vocab_size}; leave it out"
    ]


def _too_short(config: Config, folders: list[Folder]) -> list[str]:
    """A window needs the token after its last one too."""
    return [
        f"{config.named('block_size')} {config.block_size} needs {config.block_size + 1} tokens but "
        f"{folder.splits[name].path} holds {folder.splits[name].tokens}; set it to at most "
        f"{folder.splits[name].tokens - 1}, or use a longer text"
        for folder in folders
        for name in SPLITS
        if folder.splits[name].tokens <= config.block_size
    ]


def _unaligned(config: Config, one: Folder, other: Folder) -> list[str]:
    return [
        f"{config.named('mode')} multicontext reads position-aligned streams, but {one.splits[name].path} and "
        f"{other.splits[name].path} hold {one.splits[name].tokens:,} and {other.splits[name].tokens:,} tokens; prepare "
        "them from the same text, one token for one"
        for name in SPLITS
        if one.splits[name].tokens != other.splits[name].tokens
    ]


def _foreign_tokens(config: Config, one: Folder, other: Folder) -> list[str]:
    """One embedding for both needs the same meaning of each id, not only as many of them."""
    try:
        vocabularies = [tokens for tokens in (vocabulary(one), vocabulary(other)) if tokens is not None]
    except ValueError as error:
        return [f"{config.named('path')}: {error}"]
    if one.vocab_size != other.vocab_size:
        how = f"have vocabularies of {one.vocab_size:,} and {other.vocab_size:,} tokens"
    # Without any list of tokens only their numbers can be compared, which is enough for GPT-2's.
    elif vocabularies[1:] == vocabularies[:1] if vocabularies else "meta.json" not in (one.source, other.source):
        return []
    else:
        how = f"have different tokenizers (or no tokenizer.json to compare), though both of {one.vocab_size:,} tokens"
    return [
        f"{config.named('path')}: {one.path} and {other.path} {how}; prepare both with one tokenizer (--tokenizer "
        f"{one.path}), or set {config.named('separate_embeddings')} true"
    ]


def foreign_to_weights(config: Config, folders: list[Folder], weights: str | None) -> list[str]:
    """Return one line for each folder whose ids mean other tokens than those that the first weights were trained on.

    Only a folder that holds its tokenizer can be compared.
    """
    file = Path(os.path.expanduser(weights), "tokenizer.json") if weights else None
    if file is None or not file.is_file() or config.separate_embeddings or config.mode == "multicontext":
        return []
    try:
        theirs = _read_vocabulary(file)
        foreign = [folder for folder in folders if (tokens := vocabulary(folder)) and tokens[0] != theirs[0]]
    except ValueError:
        return []  # a corrupted file is reported where it is needed
    return [
        f"{config.named('path')}: {folder.path} has other tokens than the weights at {weights} know; prepare "
        f"it with theirs: python prepare.py --dataset NAME --text FILE --tokenizer {weights}"
        for folder in foreign
    ]


def vocabulary(folder: Folder) -> list | None:
    """Return [token -> id, further tokens] of a folder; None if it does not list them.

    Raises:
        ValueError: Its tokenizer.json cannot be read.
    """
    if folder.symbols:
        return [{symbol: number for number, symbol in enumerate(folder.symbols)}, []]
    return None if folder.tokenizer_file is None else _read_vocabulary(folder.tokenizer_file)


def _read_vocabulary(file: Path) -> list:
    try:
        content = parsed(file.read_text(encoding="utf-8"))
        return [content["model"]["vocab"], [[token["id"], token["content"]] for token in content["added_tokens"]]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{file} cannot be read ({reason}); prepare the data set again") from None
