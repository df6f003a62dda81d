"""Check that several data sets fit one another and the configuration: tokenizers, lengths, window sizes."""

from __future__ import annotations

import os
from pathlib import Path

from data.strict_json import parsed
from data.text.config import SPLITS, Config
from data.text.folder import Folder


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
