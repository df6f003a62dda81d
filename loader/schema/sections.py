"""The sections of a training file and the dataclasses that declare their keys.

Sections that the trainer acts on are declared in `trainer/sections.py`. The loader may not import the trainer: it finds
that module by name, as it finds components.
"""

from __future__ import annotations

import importlib
from typing import Any

from storage.config_keys import HARMLESS, IMPOSSIBLE

_trainer = importlib.import_module("trainer.sections")

# section -> the package its `name` is looked up in
COMPONENTS = {"dataset": "data", "env": "sim", "model": "models", "loss": "models.losses"}
# Sections whose further keys are passed to a constructor.
FREE_SECTIONS: dict[str, type] = {"optimizer": _trainer.OptimizerConfig, "scheduler": _trainer.SchedulerConfig}
# Sections that are absent until a file contains them (`null` removes one again).
OPTIONAL_SECTIONS: dict[str, type] = {
    "ema": _trainer.EmaConfig,
    "early_stopping": _trainer.EarlyStoppingConfig,
    "checkpointing": _trainer.CheckpointingConfig,
    "logging": _trainer.LoggingConfig,
    "eval_runner": _trainer.EvalRunnerConfig,
}
LIST_SECTIONS: dict[str, Any] = {"param_groups": _trainer.ParameterGroup, "callbacks": None}
SECTIONS = (*COMPONENTS, *FREE_SECTIONS, *OPTIONAL_SECTIONS, *LIST_SECTIONS)
# `on_resume` of sections as a whole, and of keys in them that declare none; TRAJECTORY if absent.
SECTION_ON_RESUME = {
    "model": IMPOSSIBLE,
    "dataset.name": IMPOSSIBLE,
    "param_groups": IMPOSSIBLE,
    "env": HARMLESS,  # data is recorded with it before a run begins
    "checkpointing": HARMLESS,
    "logging": HARMLESS,
    "eval_runner": HARMLESS,
    "callbacks": HARMLESS,  # user code: its effect is not known here
}
