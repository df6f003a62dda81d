"""Read models from .gguf files: their quantized weights become plain numbers, which train and save like others."""

from __future__ import annotations

from typing import Any

from storage.hub import find_gguf


def pretrained_source(path: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return the place that `from_pretrained` is given for `path`, its options for a configuration and for a model."""
    try:
        file = find_gguf(path, unless=("config.json",))
    except ValueError as error:
        raise ValueError(f"`model_name_or_path`: {error}") from None
    if file is None:
        return path, {}, {}
    from transformers import GgufConfig

    options = {"gguf_file": file.name, "local_files_only": True}
    # Otherwise the weights would stay in their blocks, a quantized model, which the Trainer does not accept.
    return str(file.parent), options, {**options, "quantization_config": GgufConfig(dequantize=True)}
