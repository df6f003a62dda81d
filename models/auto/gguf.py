"""Models out of a .gguf file: its quantized weights as plain numbers, which train, save and load like any others."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

MAGIC = b"GGUF"


def gguf_file(path: str | Path) -> Path | None:
    """`path` if it is a file, or the only .gguf file of a folder that holds no model of transformers; else None.

    Raises:
        ValueError: the file is no GGUF file, there are several, or the package that reads them is missing.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        found = [] if (file / "config.json").is_file() else sorted(file.glob("*.gguf"))
        if len(found) > 1:
            raise ValueError(
                f"`model_name_or_path: {path}` holds {len(found)} .gguf files ({found[0].name} …); name one of them"
            )
        file = found[0] if found else file
    if not file.is_file():
        return None
    with file.open("rb") as opened:
        if opened.read(len(MAGIC)) != MAGIC:
            raise ValueError(
                f"`model_name_or_path: {path}` is not a GGUF file; name a .gguf file, a folder or a hub id"
            )
    if importlib.util.find_spec("gguf") is None:
        raise ValueError(f"`model_name_or_path: {path}`: reading a .gguf file needs the package gguf: pip install gguf")
    return file


def gguf_source(file: Path) -> tuple[str, dict[str, Any]]:
    """What `from_pretrained` of a configuration or a tokenizer is to be given for `file`: a place and options."""
    return str(file.parent), {"gguf_file": file.name, "local_files_only": True}


def gguf_weights(file: Path) -> tuple[str, dict[str, Any]]:
    """As `gguf_source`, for a model."""
    from transformers import GgufConfig

    place, options = gguf_source(file)
    # Left in their blocks the weights would be a quantized model, which the Trainer does not take.
    return place, {**options, "quantization_config": GgufConfig(dequantize=True)}
