"""The sections of a training file, and the modules of components: found by file name, or by a dotted name outside Keel.

Sections that the trainer acts on are declared in `trainer/settings.py`. The loader may not import the trainer: it finds
that module by name, as it finds components.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from loader.errors import ConfigError, quoted
from storage.config_keys import HARMLESS, IMPOSSIBLE
from storage.suggestions import did_you_mean

_trainer = importlib.import_module("trainer.settings")

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


# ---- modules ----

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Component:
    """A chosen component: its module (with `Config`, `PROCESS_KEYS` and its own functions) and its validated config."""

    name: str
    module: ModuleType
    config: Any


@cache
def shipped(section: str) -> tuple[str, ...]:
    """Return the names of Keel's components: modules of the section's folder that declare PROCESS_KEYS."""
    folder = ROOT / COMPONENTS[section].replace(".", "/")
    names = []
    for path in sorted([*folder.glob("*.py"), *folder.glob("*/__init__.py")]):
        name = path.parent.name if path.name == "__init__.py" else path.stem
        if "\nPROCESS_KEYS" in path.read_text(encoding="utf-8"):
            names.append(name)
    return tuple(names)


def component_module(section: str, name: str, place: str = "") -> ModuleType:
    """Import the module that implements `section: {name: …}`.

    Raises:
        ConfigError: no such module (with the nearest name), a module without a `Config`, or one whose own import failed
            (two different messages; the second names what could not be imported), or code in the folder of a run.
    """
    path = name if "." in name else f"{COMPONENTS[section]}.{name}"
    if not all(part.isidentifier() for part in path.split(".")):
        raise ConfigError(f"`{section}.name: {name}`{place} is not a module name")
    if "." in name and (run := _run_around(path)) is not None:
        raise ConfigError(
            f"`{section}.name: {name}`{place}: the module is in {run}, the folder of a run, from which no code is "
            "imported; copy it to a package of your own"
        )
    if not _exists(path):
        known = shipped(section)
        remedy = did_you_mean(name, known, f"; there are: {quoted(known)}; a dotted name is your own module")
        raise ConfigError(f"`{section}.name: {name}`{place}: no module `{path}`{remedy}")
    try:
        module = importlib.import_module(path)
    except (Exception, SystemExit) as error:  # a script without `if __name__ == "__main__"` ends when it is imported
        raise ConfigError(
            f"`{section}.name: {name}`{place}: module `{path}` exists, but importing it failed: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not hasattr(module, "Config"):
        raise ConfigError(f"`{section}.name: {name}`{place}: module `{path}` has no `Config` dataclass")
    return module


def _run_around(path: str) -> Path | None:
    """Return the folder of a run that contains a module, or None.

    Python takes any folder below the working folder for a package, so that a run.yaml from somebody else's checkpoint
    could name a file beside it.
    """
    parts = path.split(".")
    for entry in sys.path:
        for count in range(1, len(parts)):
            folder = Path(entry, *parts[:count])
            if (folder / "run.yaml").is_file():
                return folder
    return None


def _exists(path: str) -> bool:
    try:
        return importlib.util.find_spec(path) is not None
    except ModuleNotFoundError as error:
        # Looking up `a.b` imports `a`: a missing `a` is «no such module», a missing import inside `a` is not.
        return not path.startswith(str(error.name))
    except (Exception, SystemExit):
        return True  # a parent package exists and fails on import; importing it again says how
