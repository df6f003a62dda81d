"""The two bimanual ALOHA tasks of ACT (Zhao et al. 2023, arXiv:2304.13705) in gym-aloha's MuJoCo scenes, and one of
two cubes with instructions.

Importing this file needs neither MuJoCo nor OpenGL; `make` loads the simulator. An observation is a flat
dict keyed by the HDF5 path under which a recording stores it:

    observations/qpos             (14,) float64   joint angles in rad; 6, 13 gripper openings, 0 closed .. 1 open
    observations/qvel             (14,) float64   rad/s; grippers in openings/s
    observations/env_state        (O,) float64    free bodies' positions in metres, quaternions w, x, y, z:
                                                  O = 7 cube | 14 peg, then socket | 14 red, then blue cube
    observations/images/<camera>  (height, width, 3) uint8
    instruction                   in words; of two_cubes: which cube to lift, and with which arm

An action is (14,) float64 joint targets in the order of qpos, one every 0.02 s. Targets beyond ±1 are
normal: never clip them to the range that gym-aloha declares.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from sim.aloha.config import CONTROL_HZ as CONTROL_HZ
from sim.aloha.config import INSTALL, SCENES, Config
from sim.contract import import_without_opengl

if TYPE_CHECKING:
    from types import ModuleType

    import numpy as np

    from sim.aloha.environment import Environment

PROCESS_KEYS: frozenset[str] = frozenset()
PACKAGES = ("mujoco", "dm_control", "gym-aloha")
FILM_CAMERA = "angle"


def make(config: Config) -> Environment:
    """The simulated task under joint control, before its first `reset(seed)`.

    Raises:
        ValueError: The simulator is not installed, or it has cameras and nothing can render.
    """
    return simulator().Environment(config)


def demonstrate(environment: Environment, seed: int, jitter: float) -> dict[str, np.ndarray]:
    """Replay the expert's plan under joint control; `environment` is left at the episode's last step.

    Returns:
        Arrays (T, …) under `action`, the observations' keys but the instruction, which is that of the episode, and
        `reasoning/subtask`, the expert's phase in words.
    """
    import numpy as np

    from sim.aloha import expert

    observation = environment.reset(seed)
    poses = observation["observations/env_state"]
    actions, subtasks = expert.plan(
        environment.config, poses, np.random.default_rng(seed), jitter, environment.instructed
    )
    signals = {key: value for key, value in observation.items() if key != "instruction"}
    episode = {key: np.empty((len(actions), *value.shape), value.dtype) for key, value in signals.items()}
    for step, action in enumerate(actions):
        for key, values in episode.items():
            values[step] = observation[key]
        observation = environment.step(action)
    return {"action": actions, **episode, "reasoning/subtask": np.array(subtasks)}


def viewer(config: Config, task: str, height: int, width: int) -> Callable[[np.ndarray], np.ndarray]:
    """A function that renders positions (Q,); see `sim.contract`."""
    physics = simulator().Environment(dataclasses.replace(config, cameras=[])).physics
    from sim.renderer import Renderer

    renderer = Renderer(physics.model.ptr, height, width, config.shadows)

    def view(positions: np.ndarray) -> np.ndarray:
        physics.data.qpos[:] = positions
        physics.forward()
        return renderer.render(physics.data.ptr, FILM_CAMERA)

    return view


def simulator() -> ModuleType:
    """The module `sim.aloha.environment`."""
    return import_without_opengl(SCENES, INSTALL)
