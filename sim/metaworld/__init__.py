"""Meta-World: fifty tasks of a Sawyer arm, with instructions in words (Yu et al. 2020, arXiv:1910.10897).

Importing this needs neither MuJoCo nor OpenGL; `make` loads the simulator. See `sim.contract`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from sim.contract import import_without_opengl
from sim.metaworld.config import Config

if TYPE_CHECKING:
    from types import ModuleType

    import numpy as np

    from sim.metaworld.environment import Environment

PROCESS_KEYS: frozenset[str] = frozenset()
PACKAGES = ("mujoco", "metaworld")
CONTROL_HZ = 80
FILM_CAMERA = "corner"


def make(config: Config) -> Environment:
    """The simulated tasks, before the first `reset(seed)`.

    Raises:
        ValueError: The simulator is not installed, or it has cameras and nothing can render.
    """
    return simulator().Environment(config)


def demonstrate(environment: Environment, seed: int, jitter: float) -> dict[str, np.ndarray]:
    """The episode of the scripted expert, whose executed actions are disturbed; those recorded are not.

    So a policy learns to come back to the expert's path (Laskey et al. 2017, arXiv:1703.09327). `environment` is left
    at the episode's last step.

    Returns:
        Arrays (T, …) under `action`, the observations' keys without the instruction, which is that of the episode, and
        `reasoning/subtask`, the expert's phase in words, where the task's phases have any.
    """
    import numpy as np

    random, deviation = np.random.default_rng(seed), jitter * simulator().JITTER_STD
    observation, episode = environment.reset(seed), []
    while not environment.done:
        action = environment.expert_action()
        episode.append({"action": action, **observation})
        if "subtask" in observation:
            episode[-1]["reasoning/subtask"] = episode[-1].pop("subtask")
        disturbed = action.copy()
        disturbed[:3] += deviation * random.standard_normal(3)
        observation = environment.step(disturbed)
    keys = [key for key in episode[0] if key != "instruction"]
    return {key: np.array([step[key] for step in episode]) for key in keys}


def viewer(config: Config, task: str, height: int, width: int) -> Callable[[np.ndarray], np.ndarray]:
    """A function that renders positions (Q,); see `sim.contract`."""
    import mujoco

    environment = make(dataclasses.replace(config, task=task, cameras=[], instruction="right"))
    environment.reset(0)
    env = environment.scene.env
    from sim.renderer import Renderer

    renderer = Renderer(env.model, height, width, config.shadows)

    def view(positions: np.ndarray) -> np.ndarray:
        env.data.qpos[:] = positions
        mujoco.mj_forward(env.model, env.data)
        return simulator().upright(renderer, env.data, FILM_CAMERA)

    return view


def simulator() -> ModuleType:
    """The module `sim.metaworld.environment`."""
    return import_without_opengl(
        "sim.metaworld.environment", "pip install -e .[sim] && pip install --no-deps metaworld"
    )
