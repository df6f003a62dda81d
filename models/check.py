"""Check a network module: `python -m models.check my_lab.net [key=value …]`.

Builds the network with the given keys of its `Config` (dims of the data among them), saves it, loads it again with its
`load`, and compares all weights. Exit code 0: it can be trained and saved; 2: one line says what is wrong.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any

from storage.config_keys import contract_problems

CONFIG_ERROR = 2


def check_module(name: str, settings: dict[str, Any]) -> str:
    """Build, save and load the network of a module; returns a line that describes it.

    Raises:
        ValueError: the module, its functions, its network or the loaded weights are not as they must be.
    """
    import torch
    from transformers.utils import logging

    from models.adapt import load_adapted
    from models.adapt.build import build

    logging.disable_progress_bar()
    module = importlib.import_module(name)
    config_class = getattr(module, "Config", None)
    if not dataclasses.is_dataclass(config_class):
        raise ValueError(f"module `{name}` has no `Config` dataclass")
    if problems := contract_problems("model", module):
        raise ValueError(problems[0])
    keys = [field.name for field in dataclasses.fields(config_class)]
    if unknown := [key for key in settings if key not in keys]:
        raise ValueError(f"`{unknown[0]}` is not a key of {name}; it has {', '.join(keys) or 'none'}")
    # Found by name, as the loader finds `models.adapt`: neither room imports the other.
    process = importlib.import_module("loader.schema.process_arguments").ProcessArguments()
    adapted = build(module, config_class(**settings), process, None, False)
    with tempfile.TemporaryDirectory() as folder:
        adapted.save(folder)
        loaded = load_adapted(Path(folder), module)
    before, after = adapted.model.state_dict(), loaded.state_dict()
    for key in sorted({*before, *after}):
        if key not in before or key not in after or not torch.equal(before[key], after[key]):
            raise ValueError(f"`load` of {name} does not return the network that was saved: `{key}` differs")
    parameters = sum(parameter.numel() for parameter in adapted.model.parameters())
    return f"{name}: {type(adapted.model).__name__} of {parameters:,} parameters is built, saved and loaded"


def main(arguments: list[str] | None = None) -> int:
    """Check the module that the command line names; returns the exit code."""
    import yaml

    words = sys.argv[1:] if arguments is None else arguments
    if len(words) < 1 or any("=" not in word for word in words[1:]):
        print("usage: python -m models.check MODULE [key=value …]", file=sys.stderr)
        return CONFIG_ERROR
    try:
        settings = {key: yaml.safe_load(value) for key, _, value in (word.partition("=") for word in words[1:])}
        print(check_module(words[0], settings))
    except (ValueError, ImportError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return CONFIG_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
