"""What every simulator offers, so that recording, rollouts and films exist once.

A simulator is a module such as `sim.aloha`: the one that defines its `Config`, or that `Config.simulator` names.
Importing it needs neither NumPy, MuJoCo nor OpenGL, so that `--check` is fast. It has

    make(config)                                 an `Environment`
    demonstrate(environment, seed, jitter)       the scripted expert's episode: arrays (T, …) by HDF5 path, and texts
    viewer(config, task, height, width)          a function from positions (Q,) to a frame (height, width, 3) uint8
    CONTROL_HZ                                   control steps a second
    PACKAGES                                     packages whose versions a recording notes

Shapes: T control steps, Q numbers in the simulator's position vector.
"""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np


class Environment(Protocol):
    """One simulated scene, or several that the seeds take in turn.

    Attributes:
        task: The task of this episode.
        variants: Number of tasks; seeds that are equal modulo it have the same task.
        instruction: What the policy shall do, in words; None if there are no words for it.
        reward: That of the last step.
        success: Whether the goal was reached at any step since `reset`.
        strict_success: Whether it is reached now as well; meant to be read after the last step.
        kept: Whether a recording keeps this episode.
        steps_to_success: Control steps until the goal was first reached, or None.
        done: Whether the episode has ended.
        positions: The simulator's whole position vector (Q,), from which `sim.film` draws this moment.
    """

    config: Any
    task: str
    variants: int
    instruction: str | None
    reward: int
    success: bool
    strict_success: bool
    kept: bool
    steps_to_success: int | None
    done: bool
    positions: np.ndarray

    def reset(self, seed: int) -> dict[str, np.ndarray | str]:
        """Begin the episode of a seed, 0 <= seed < 2**32 + variants; the same seed always gives the same episode."""

    def step(self, action: np.ndarray) -> dict[str, np.ndarray | str]:
        """The next observation; ValueError if the action has another shape or is not finite."""


def import_without_opengl(name: str, install: str) -> ModuleType:
    """Import a module that needs a simulator's packages.

    On import, dm_control and mujoco load the library that MUJOCO_GL names, although stepping needs none, so they are
    imported with rendering off. `sim.renderer` reads MUJOCO_GL again for the first frame.

    Raises:
        ValueError: A package is not installed; `install` is how to do that.
    """
    from storage.worker_pool import environment_variables

    try:
        with environment_variables({"MUJOCO_GL": "off"}), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # packages warn of what they correct themselves
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "sim":
            raise
        raise ValueError(f"{name} needs the package {error.name!r}, not installed: {install}") from error


def simulator(config: Any) -> ModuleType:
    """The module that simulates what an `env` section configures."""
    return importlib.import_module(getattr(config, "simulator", type(config).__module__))
