"""Signals: recordings of any number of channels, sampled evenly in time; predicted next, or classified.

A sample is a window of one recording. Importing this needs nothing but the standard library, so that a configuration
can be checked in no time.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from data.signals.config import Config
from data.signals.config import PredictFlags as PredictFlags
from storage.config_keys import lazy

TOKENIZERS = ("mu_law", "uniform")
PROCESS_KEYS = frozenset({"cache_dir"})


def check(config: Config, run: Any) -> list[str]:
    """Problems that show without reading recordings, one line each."""
    from data.signals.text_files import problem_of, settings_of

    problems = path_problems(config)
    folder = encoder_path(config)
    if folder is not None and not os.path.isfile(os.path.join(folder, "config.json")):
        problems.append(f"dataset.tokenizer: {folder} is neither mu_law, uniform nor the folder of a trained model")
    if config.target == "text" and (problem := problem_of(config.tokenizer_path, settings_of(config))) is not None:
        problems.append(problem)
    return problems


def path_problems(config: Config) -> list[str]:
    if config.path is None:
        return ["dataset.path is not set; name a recording, a folder of recordings or a list of them"]
    return [
        f"dataset.{name}: {path} does not exist; name a recording, a folder of recordings or a list of them"
        for name in ("path", "eval_path", "test_path")
        for path in config.paths(name)
        if not os.path.exists(os.path.expanduser(path))
    ]


def encoder_path(config: Config) -> str | None:
    """The folder of the trained network that `tokenizer` names: `build` gets it as `encoder`."""
    return None if config.tokenizer in TOKENIZERS or config.target != "tokens" else config.tokenizer


def make(config: Config, run: Any, source: str | None) -> Path:
    """Prepare the recordings, and train the tokenizer of `target: text`, for prepare.py; returns where they are.

    Raises:
        ValueError: the recordings cannot be used, or the tokenizer is there already, for other settings.
    """
    from data.signals.build_bundle import open_all, train_text

    if source is not None:
        raise ValueError(f"--source {source}: signals are prepared from dataset.path; set it with --set dataset.path=…")
    problems = path_problems(config)
    if problems:
        raise ValueError(problems[0])
    if config.target != "text":
        open_all(config, run)
        return Path(run.cache_dir) / "signals"
    return train_text(config, run)


def build(config: Config, run: Any, encoder: Any = None) -> Any:
    """The `Bundle` of the configured recordings; raises ValueError if they cannot be used."""
    from data.signals.build_bundle import assemble

    problems = check(config, run)
    if problems:
        raise ValueError(problems[0])
    return assemble(config, run, encoder)


__getattr__ = lazy(__name__, Processor="data.signals.processor")
