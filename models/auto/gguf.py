"""Read models from .gguf files: their quantized weights become plain numbers, which train and save like others."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

MAGIC = b"GGUF"


def gguf_file(path: str | Path) -> Path | None:
    """Return `path` if it is a file, or the only .gguf file of a folder without a model of transformers; else None.

    Raises:
        ValueError: the file is not a GGUF file, there are several, or the package that reads them is missing.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        files = [] if (file / "config.json").is_file() else sorted(file.glob("*.gguf"))
        if len(files) > 1:
            raise ValueError(
                f"`model_name_or_path: {path}` has {len(files)} .gguf files ({files[0].name} …); name one of them"
            )
        file = files[0] if files else file
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


def pretrained_source(path: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return the place that `from_pretrained` is given for `path`, its options for a configuration and for a model."""
    file = gguf_file(path)
    if file is None:
        return path, {}, {}
    from transformers import GgufConfig

    options = {"gguf_file": file.name, "local_files_only": True}
    # Otherwise the weights would stay in their blocks, a quantized model, which the Trainer does not accept.
    return str(file.parent), options, {**options, "quantization_config": GgufConfig(dequantize=True)}
