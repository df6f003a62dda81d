"""Make the tokenizers of text data, and encode blocks of text with them.

All are transformers' PreTrainedTokenizerFast, saved beside the tokens. Those made here decode to exactly the encoded
text: one token per character (`char`) or byte (`bytes`), or byte-level BPE (`bpe:N`).

`block_encoder` needs only the package `tokenizers`, and for characters and bytes it is one look-up in a table: the same
ids, hundreds of times faster.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.load_tokenizer import load_tokenizer
from storage.safe_read import printable
from storage.suggestions import did_you_mean

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
MOST_DIGITS = 9  # of what may be such a number: int() takes none of thousands
LEAST_BPE, MOST_BPE = 257, 2**18  # 256 bytes and the end of text; beyond, an embedding would be most of a model
CODE_POINTS = 0x110000
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
Encode = Callable[[Sequence[bytes]], list[np.ndarray]]


def char_tokenizer(symbols: Iterable[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per character (Unicode code point), ids in the order of the symbols.

    Another character is an error when it is encoded, since the vocabulary has no unknown token.
    """
    return _for_transformers(_char_backend(list(dict.fromkeys(symbols))))


def bytes_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per UTF-8 byte; the id is the byte's value, 0 to 255."""
    return _for_transformers(_bytes_backend())


def train_bpe(texts: Iterable[str], n: int) -> PreTrainedTokenizerFast:
    """Train byte-level BPE of at most `n` tokens, including the end of text (id 0) and the 256 bytes.

    Words are split as GPT-2 splits them. There are fewer tokens if the texts have no more pairs to merge.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return _for_transformers(backend, eos_token=END_OF_TEXT)


def open_tokenizer(path_or_id: str) -> PreTrainedTokenizerFast:
    """Return a fast tokenizer, see `data.load_tokenizer`; a ValueError if it is slow."""
    tokenizer = load_tokenizer(path_or_id)
    if not tokenizer.is_fast:
        raise ValueError(f"tokenizer {path_or_id} has no fast version (tokenizer.json), which preparing text needs")
    return tokenizer


def check_word(word: str) -> None:
    """Raise ValueError for a `--tokenizer` that is none of char, bytes, bpe:N, an existing path, or like a hub id."""
    kind, colon, size = word.partition(":")
    if kind == "bpe":
        if not (size.isascii() and size.isdigit() and len(size) <= MOST_DIGITS and LEAST_BPE <= int(size) <= MOST_BPE):
            limits = f"at least {LEAST_BPE} (bytes and an end of text), at most {MOST_BPE}"
            raise ValueError(f"tokenizer `{printable(word)}`: write bpe:N with N tokens, such as bpe:4096; {limits}")
    elif word not in ("char", "bytes") and not Path(os.path.expanduser(word)).exists():
        hint = did_you_mean(word, ("char", "bytes", "bpe"))
        if hint or not HUB_ID.fullmatch(word):
            raise ValueError(f"unknown tokenizer `{word}`{hint or ': no such path; there are char, bytes and bpe:N'}")


def vocabulary_size(tokenizer: PreTrainedTokenizerFast) -> int:
    """Return one more than the largest id: the size an embedding needs, also if ids have gaps."""
    return max(tokenizer.get_vocab().values()) + 1


def block_encoder(folder: Path) -> Encode:
    """Return the saved tokenizer as a function: blocks of UTF-8 text -> their token ids, one array per block.

    No special token is added, and special tokens that the text contains are encoded as ordinary text. Only `tokenizers`
    is imported: a worker process starts in a fraction of the time that transformers takes.

    Raises (the function): ValueError: A char tokenizer lacks a character; the message says which.
    """
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if _parts(backend) == _parts(_bytes_backend()):
        return lambda blocks: [np.frombuffer(block, np.uint8) for block in blocks]
    if (symbols := _symbols(backend)) is not None:
        return _char_lookup(symbols)
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True

    def encode(blocks: Sequence[bytes]) -> list[np.ndarray]:
        encodings = backend.encode_batch_fast([block.decode() for block in blocks], add_special_tokens=False)
        return [np.asarray(encoding.ids, np.uint32) for encoding in encodings]

    return encode


def _char_lookup(symbols: list[str]) -> Encode:
    ids = np.full(CODE_POINTS, -1, np.int32)
    ids[[ord(symbol) for symbol in symbols]] = np.arange(len(symbols))

    def encode(blocks: Sequence[bytes]) -> list[np.ndarray]:
        encoded = [ids[code_points(block.decode())] for block in blocks]
        for block, tokens in zip(blocks, encoded, strict=True):
            if len(tokens) and tokens.min() < 0:
                unknown = block.decode()[int(tokens.argmin())]
                which = f"the character {unknown!r} (U+{ord(unknown):04X})"
                raise ValueError(f"{which} is not among the {len(symbols)} symbols of the tokenizer")
        return encoded

    return encode


def code_points(text: str) -> np.ndarray:
    """Return the code points of a text, (characters,) uint32."""
    return np.frombuffer(text.encode("utf-32-le"), "<u4")


def _symbols(backend: Tokenizer) -> list[str] | None:
    """The symbols of a tokenizer that `char_tokenizer` made; None for any other."""
    if _parts(backend)["model"]["type"] != "WordLevel":
        return None
    vocabulary = backend.get_vocab()
    symbols = sorted(vocabulary, key=vocabulary.__getitem__)
    if any(len(symbol) != 1 for symbol in symbols):
        return None
    return symbols if _parts(_char_backend(symbols)) == _parts(backend) else None


def _parts(backend: Tokenizer) -> dict:
    """All of a tokenizer that decides ids where no special token is added and nothing is cut or padded."""
    parts = json.loads(backend.to_str())
    return {key: value for key, value in parts.items() if key not in ("post_processor", "truncation", "padding")}


def _char_backend(symbols: list[str]) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    # The unknown token is not in the vocabulary: a character that is missing becomes an error, not a hole.
    backend = Tokenizer(models.WordLevel({symbol: index for index, symbol in enumerate(symbols)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return backend


def _bytes_backend() -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    backend = Tokenizer(models.BPE({symbol: byte for byte, symbol in enumerate(_byte_symbols())}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _byte_symbols() -> list[str]:
    """The character by which byte-level tokenizers write each byte: itself if it is printable Latin-1.

    The others take the code points from 256 on, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _for_transformers(backend: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    # Clean-up would join « ,» and « n't» to the word before: decoding has to give the text back.
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **special)
