"""The tokenizer of a fine-tuning run: from a folder, a hub or out of a .gguf file."""

import importlib.util
from pathlib import Path

from data.cache import file_identity, key_of, open_or_build

GGUF_MAGIC = b"GGUF"


def load_tokenizer(place: str, cache_dir: Path, hub_cache: str | None, trust_remote_code: bool):
    """A tokenizer of transformers.

    Args:
        place: a folder, a .gguf file or a folder with just one, or a hub id.
        cache_dir: where a tokenizer that was read out of a .gguf file is kept, since that takes seconds.
        hub_cache: where files from a hub are kept; None: where transformers keeps them.

    Raises:
        ValueError: nothing is there, or no tokenizer is in it.
    """
    from transformers import AutoTokenizer

    path = Path(place).expanduser()
    gguf = gguf_file(path)
    if gguf is not None:
        return _from_gguf(gguf, cache_dir)
    try:
        # A folder is asked by its full name: otherwise one that lacks files would be looked for on the hub.
        name = str(path.absolute()) if path.is_dir() else place
        # Left open, `trust_remote_code` would be asked for at the terminal.
        return AutoTokenizer.from_pretrained(name, cache_dir=hub_cache, trust_remote_code=trust_remote_code)
    except Exception as error:  # a damaged file may raise anything
        cause = str(error).strip().split("\n")[0] or type(error).__name__
        if "trust_remote_code" in str(error):
            cause = "it brings code of its own, which runs only with trust_remote_code: true"
        raise ValueError(f"the tokenizer of {place} cannot be loaded: {cause}") from None


def gguf_file(path: Path) -> Path | None:
    """`path` if it is a .gguf file, or the only one in it if it is a folder without a tokenizer of its own."""
    if path.is_file():
        return path
    if not path.is_dir() or (path / "tokenizer.json").is_file() or (path / "tokenizer_config.json").is_file():
        return None
    found = sorted(path.glob("*.gguf"))
    if len(found) > 1:
        raise ValueError(
            f"{path} holds {len(found)} .gguf files ({found[0].name}, {found[1].name} …); name one of them"
        )
    return found[0] if found else None


def _from_gguf(file: Path, cache_dir: Path):
    from transformers import AutoTokenizer, __version__

    with file.open("rb") as opened:
        if opened.read(len(GGUF_MAGIC)) != GGUF_MAGIC:
            raise ValueError(
                f"{file} is not a GGUF file; a tokenizer is a folder with tokenizer.json, or in a .gguf file"
            )
    if importlib.util.find_spec("gguf") is None:
        raise ValueError(f"reading {file} needs the package gguf: pip install gguf")

    def convert(folder: Path) -> dict:
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                str(file.parent), gguf_file=file.name, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # the package's own, of any kind, where a file is cut short or lacks a field
            cause = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"the tokenizer in {file} cannot be read: {cause}") from None
        tokenizer.save_pretrained(folder)
        return {"file": str(file)}

    key = key_of({"tokenizer": file_identity(file, file.name), "transformers": __version__})
    folder, _ = open_or_build(cache_dir / "records", f"tokenizer-{key}", convert)
    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
