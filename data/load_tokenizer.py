"""Load a tokenizer: from a folder, a tokenizer.json, a hub, or out of a .gguf file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from data.cache import file_identity, key_of, open_or_build
from storage import safe_read
from storage.hub import find_gguf, hub_is_reachable


def load_tokenizer(
    place: str | Path, cache_dir: Path | None = None, hub_cache: str | None = None, trust_remote_code: bool = False
) -> Any:
    """Return a tokenizer of transformers.

    Args:
        place: A folder, a tokenizer.json, a .gguf file or a folder with just one, or a hub id.
        cache_dir: Where a tokenizer that was read out of a .gguf file is kept, since that takes seconds.
        hub_cache: Where files from a hub are kept; None: where transformers keeps them.

    Raises:
        ValueError: Nothing is there, or no tokenizer is in it.
    """
    from transformers import CONFIG_MAPPING, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerFast

    path, is_offline = Path(os.path.expanduser(place)), False
    gguf = find_gguf(place, unless=("tokenizer.json", "tokenizer_config.json"))
    try:
        if gguf is not None and cache_dir is not None:
            return _from_gguf(gguf, cache_dir)
        if os.path.isfile(path):
            return PreTrainedTokenizerFast(tokenizer_file=str(path), clean_up_tokenization_spaces=False)
        # A folder is given by its full name: otherwise one that lacks files would be looked for on the hub.
        is_folder = os.path.isdir(path)
        is_offline = not is_folder and not hub_is_reachable()
        options = {"cache_dir": hub_cache, "trust_remote_code": trust_remote_code}
        options["local_files_only"] = is_folder or is_offline
        if is_folder and (path / "config.json").is_file():
            # transformers looks for the tokenizer's class in the model's configuration too, and warns of those of ours.
            model = safe_read.read_json(path / "config.json")
            is_foreign = "auto_map" in model or model.get("model_type") in CONFIG_MAPPING
            options |= {} if is_foreign else {"config": PreTrainedConfig()}
        return AutoTokenizer.from_pretrained(str(path.absolute() if is_folder else place), **options)
    except Exception as error:  # a damaged file may raise anything
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        reason = " ".join(lines) if lines[0].endswith(":") else lines[0]  # after a colon follows what matters
        if "trust_remote_code" in str(error):
            reason = "it brings code of its own, which runs only with trust_remote_code: true"
        if is_offline:
            reason = "it is not in the cache and the hub cannot be reached"
        raise ValueError(f"the tokenizer of {place} cannot be loaded: {reason}") from None


def saved_tokenizer(folder: Path, trust_remote_code: bool) -> Any:
    """The tokenizer beside a model.

    Raises:
        ValueError: there is none, or it cannot be loaded.
    """
    if not (folder / "tokenizer_config.json").is_file():
        raise ValueError(f"{folder} holds no tokenizer: its data has none, or several; text needs a single one")
    return load_tokenizer(folder, trust_remote_code=trust_remote_code)


def _from_gguf(file: Path, cache_dir: Path) -> Any:
    from transformers import AutoTokenizer, __version__

    def convert(folder: Path) -> dict:
        tokenizer = AutoTokenizer.from_pretrained(
            str(file.parent), gguf_file=file.name, local_files_only=True, trust_remote_code=False
        )
        tokenizer.save_pretrained(folder)
        return {"file": str(file)}

    key = key_of({"tokenizer": file_identity(file, file.name), "transformers": __version__})
    folder, _ = open_or_build(cache_dir / "records", f"tokenizer-{key}", convert)
    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
