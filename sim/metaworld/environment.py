"""Meta-World's tasks (McLean et al. 2025, arXiv:2505.11289) behind the contract of the simulators.

Imported by `sim.metaworld.simulator`. An observation is a flat dict keyed by the HDF5 path under which a recording
stores it:

    observations/state            (39,) float64   hand, gripper and objects now (18) and one step ago (18), goal (3)
    observations/images/<camera>  (height, width, 3) uint8
    instruction                   what the policy shall do, in words

An action is (4,) float64 from -1 to 1: a movement of the hand in x, y and z, and the force that closes the gripper.
"""

from __future__ import annotations

import random
import warnings
from typing import Any

import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.policies import ENV_POLICY_MAP

from sim.metaworld.config import Config
from sim.metaworld.instructions import OPPOSITES, TASKS
from sim.metaworld.subtasks import NAMED, subtask

HOLD_STEPS = 10  # an episode goes on for so many steps after its success, which must then still hold
JITTER_STD = 0.2  # standard deviation of the disturbance of an expert's actions, at jitter 1
GOAL = slice(36, 39)


def upright(renderer: Any, data: Any, camera: str) -> np.ndarray:
    """A camera's view (height, width, 3) uint8; the scenes' corner cameras hang upside down, and are turned."""
    frame = renderer.render(data, camera)
    return frame[::-1, ::-1].copy() if camera.startswith("corner") else frame


class Scene:
    """One task of Meta-World, whose start is a function of a seed."""

    def __init__(self, task: str) -> None:
        self.task = task
        self.env = ALL_V3_ENVIRONMENTS[f"{task}-v3"]()
        # Meta-World draws starts when a task is set, from a list that it makes; here each seed is a start.
        self.env._set_task_called = True
        self.env._freeze_rand_vec = False
        self.env.seeded_rand_vec = True
        self.env._partially_observable = False
        self.env.__dict__.pop("sawyer_observation_space", None)  # it was computed with the goal hidden, as zeros

    def reset(self, seed: int) -> np.ndarray:
        """The state (39,) at the start of a seed."""
        self.env.seed(seed)
        return self.env.reset()[0]

    def step(self, action: np.ndarray) -> tuple[np.ndarray, bool]:
        """The next state (39,), and whether the task's goal is reached now."""
        state, _, _, _, info = self.env.step(action.astype(np.float32))
        return state, bool(info["success"])


class Environment:
    """The tasks of a configuration; the seed of an episode decides which one it is."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._scenes: dict[str, Scene] = {}
        self._renderers: dict[str, object] = {}

    @property
    def variants(self) -> int:
        """The number of tasks; seeds that are equal modulo it have the same task."""
        return len(self.config.tasks)

    def reset(self, seed: int) -> dict[str, np.ndarray | str]:
        """Begin the episode of a seed; the same seed gives the same episode, whatever came before."""
        tasks = self.config.tasks
        self.task = tasks[seed % len(tasks)]
        if self.task not in self._scenes:
            self._scenes[self.task] = Scene(self.task)
        self.scene = self._scenes[self.task]
        self._instruct(random.Random(seed))
        self.steps, self.reward, self.steps_to_success = 0, 0, None
        self.state = self.scene.reset(seed)
        return self._observe()

    def step(self, action: np.ndarray) -> dict[str, np.ndarray | str]:
        """Execute an action (4,), clipped to ±1; ValueError if it has another shape or is not finite."""
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (4,) or not np.isfinite(action).all():
            raise ValueError(
                f"the policy's action at step {self.steps} must be 4 finite numbers, got shape {action.shape}: "
                f"{np.array2string(action, precision=3, threshold=14)}"
            )
        self.state, success = self.scene.step(action.clip(-1, 1))
        self.steps += 1
        self.reward = int(success)
        if success and self.steps_to_success is None:
            self.steps_to_success = self.steps
        return self._observe()

    @property
    def success(self) -> bool:
        return self.steps_to_success is not None

    @property
    def kept(self) -> bool:
        """Whether a recording keeps this episode: Meta-World counts a goal that was reached at any step."""
        return self.success

    @property
    def strict_success(self) -> bool:
        """Whether the goal is still reached at the last step."""
        return self.success and self.reward == 1

    @property
    def done(self) -> bool:
        held = self.success and self.steps >= self.steps_to_success + HOLD_STEPS
        return held or self.steps >= self.config.episode_steps

    @property
    def positions(self) -> np.ndarray:
        """The simulator's whole position vector (Q,), from which `sim.film` draws this moment."""
        return self.scene.env.data.qpos.copy()

    def expert_action(self) -> np.ndarray:
        """The action (4,), clipped to ±1, of the scripted expert of the task that the instruction names."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of each action beyond ±1
            action = self._expert.get_action(self.state.copy())  # some experts write into what they read
        return np.asarray(action, dtype=np.float64).clip(-1, 1)

    @property
    def subtask(self) -> str | None:
        """The expert's phase in words; None for a task whose phases have none."""
        return subtask(self.instructed, self.state) if self.instructed in NAMED else None

    def _instruct(self, chance: random.Random) -> None:
        """Choose a phrasing of the task's instruction, or of another task's, and that task's expert."""
        self.instructed = self.task
        if self.config.instruction == "wrong":
            others = [other for other in self.config.tasks if other != self.task]
            opposite = OPPOSITES.get(self.task)
            self.instructed = opposite if opposite in others else chance.choice(others)
        *phrasings, held_out = TASKS[self.instructed]
        self.instruction = held_out if self.config.instruction == "held_out" else chance.choice(phrasings)
        self._expert = ENV_POLICY_MAP[f"{self.instructed}-v3"]()

    def _observe(self) -> dict[str, np.ndarray | str]:
        state = self.state.copy()
        if not self.config.show_goal:
            state[GOAL] = 0
        observation: dict[str, np.ndarray | str] = {"observations/state": state, "instruction": self.instruction}
        if self.subtask is not None:
            observation["subtask"] = self.subtask
        for camera in self.config.cameras:
            observation[f"observations/images/{camera}"] = upright(self._renderer(), self.scene.env.data, camera)
        return observation

    def _renderer(self):
        if self.task not in self._renderers:
            from sim.renderer import Renderer

            size = self.config.image_height, self.config.image_width
            self._renderers[self.task] = Renderer(
                self.scene.env.model, *size, self.config.shadows, self.config.antialias
            )
        return self._renderers[self.task]
