"""nanoGPT's `meta.pkl`, read without running anything it names.

A pickle is a program: it may call any function it can import. Here importing is refused, so what is left are numbers,
texts, lists and dicts.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

from data.text.config import MOST_IDS

LARGEST_META = 64 * 2**20  # bytes; a vocabulary of 200,000 words takes about 4 MB


class PlainUnpickler(pickle.Unpickler):
    """Knows no class and no function."""

    def find_class(self, module: str, name: str) -> Any:
        raise ValueError(f"it asks for {module}.{name}")

    def persistent_load(self, identity: Any) -> Any:
        raise ValueError("it refers to objects outside the file")


def read_meta_pickle(path: Path) -> tuple[int, list[str] | None]:
    """(vocabulary size, characters in the order of their ids); None for the latter where ids are not characters.

    Raises:
        ValueError: the file holds more than plain values, or no consistent vocabulary.
    """
    meta = _plain(path)
    size = meta.get("vocab_size") if isinstance(meta, dict) else None
    if type(size) is not int or size < 1:
        raise ValueError(f"{path} has no vocab_size that is a positive whole number; write a meta.json instead")
    if size > MOST_IDS:
        raise ValueError(f"{path}: vocab_size is too large; token ids are uint32, of which {MOST_IDS:,} exist")
    table = meta.get("itos")
    if table is None:
        return size, None
    if type(table) is list:
        table = dict(enumerate(table))
    if type(table) is not dict or len(table) != size or set(table) != set(range(size)):
        raise ValueError(f"{path}: itos does not list the ids 0 to {size - 1} of vocab_size {size}; correct it")
    symbols = [table[number] for number in range(size)]
    if not all(type(symbol) is str and len(symbol) == 1 for symbol in symbols):
        return size, None
    halves = [number for number, symbol in enumerate(symbols) if 0xD800 <= ord(symbol) < 0xE000]
    if halves:
        raise ValueError(
            f"{path}: itos gives id {halves[0]} half a character (U+{ord(symbols[halves[0]]):04X}), which no text can "
            "hold; correct it, or write a meta.json"
        )
    if len(set(symbols)) != size:
        raise ValueError(f"{path}: itos gives one character two ids; correct it")
    return size, symbols


def _plain(path: Path) -> Any:
    if path.stat().st_size > LARGEST_META:
        raise ValueError(f"{path} is larger than {LARGEST_META // 2**20} MB, too large for a vocabulary")
    try:
        return PlainUnpickler(io.BytesIO(path.read_bytes())).load()
    except Exception as error:  # a damaged pickle fails in any way it likes
        why = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{path} is not read: {why}; only plain dicts, lists, texts and numbers are. Write a meta.json instead"
        ) from None
