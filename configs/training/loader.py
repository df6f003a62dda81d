"""The documented way in from Python: load a training configuration, and make `TrainingArguments` of it."""

from __future__ import annotations

import os
from typing import Any

from loader.output.training_arguments import training_arguments
from loader.resolve.resolver import resolve
from loader.schema.hyper_arguments import HyperArguments

__all__ = ["TrainingConfig", "create_training_arguments", "load_training_config"]


class TrainingConfig(dict):
    """A merged configuration as a plain nested dict; `origins` maps `key.path` to the file and line that set it."""

    origins: dict[str, str]


def load_training_config(path: str | os.PathLike) -> TrainingConfig:
    """The configuration in a training YAML, over the defaults, validated.

    Raises:
        ConfigError: with every problem found, one line each.
    """
    run = resolve(training_config=path)
    config = TrainingConfig(run.tree.plain())
    config.origins = run.origins()
    return config


def create_training_arguments(path: str | os.PathLike, hyper_args: HyperArguments | None = None) -> Any:
    """`transformers.TrainingArguments` from a training YAML and flags; a given flag beats the file.

    Raises:
        ConfigError: with every problem found, one line each.
    """
    return training_arguments(resolve(hyper_args, training_config=path))
