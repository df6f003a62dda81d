"""gym-aloha's tasks as dm_control environments: joint control for policies, hand poses for the expert.

gym-aloha's own `AlohaEnv` renders three cameras every step and refuses the end-effector tasks, so the
dm_control environments are built here from its tasks and scenes. Imported by `sim.aloha.simulator`.

Shapes: O length of the free bodies' poses (7 cube, 14 peg then socket or red then blue cube), Q = 16 + O simulator
positions.
"""

from __future__ import annotations

import functools
import random

import numpy as np
from dm_control.mujoco import Physics, wrapper
from dm_control.rl import control
from gym_aloha.constants import ASSETS_DIR, DT, normalize_puppet_gripper_position
from gym_aloha.tasks import sim as joint_tasks
from gym_aloha.tasks import sim_end_effector as end_effector_tasks
from gym_aloha.utils import sample_box_pose, sample_insertion_pose

from sim.aloha.config import MAX_REWARD, Config
from sim.aloha.contacts import FINGERS, contacts
from sim.aloha.instructions import ALONE, PHRASINGS, VARIANTS
from sim.aloha.two_cubes import TwoCubes, sample_cubes, with_blue_cube

SOCKET_WALLS = ("socket-1", "socket-2", "socket-3", "socket-4")
ROBOT_QPOS = 16  # joints of the two arms with two fingers each; the free bodies' poses come after them


@functools.cache
def compiled_model(task: str, control_mode: str) -> wrapper.MjModel:
    """The scene's model, compiled once per process: that takes longer than an episode."""
    scene = "transfer_cube" if task == "two_cubes" else task
    scene = scene if control_mode == "joint" else f"end_effector_{scene}"
    path = str(ASSETS_DIR / f"bimanual_viperx_{scene}.xml")
    model = wrapper.MjModel(with_blue_cube(path)) if task == "two_cubes" else wrapper.MjModel.from_xml_path(path)
    if control_mode == "end_effector":
        # The scene welds each hand to its mocap body so softly that under MuJoCo 3 the hand trails
        # centimetres behind; a stiff weld makes it follow the waypoints.
        model.eq_solimp[:, :2] = (0.9, 0.95)
    return model


def sample_poses(task: str, seed: int) -> np.ndarray:
    """The free bodies' starting poses (O,), where the task is gym-aloha's as it draws them for this seed."""
    if task == "two_cubes":
        return sample_cubes(seed)
    if task == "transfer_cube":
        return sample_box_pose(seed)
    return np.concatenate(sample_insertion_pose(seed))


class _WithoutRendering:
    """Leaves images out of the tasks' observations; the environment adds those of `Config.cameras`."""

    def get_observation(self, physics: Physics) -> dict[str, np.ndarray]:
        return {
            "observations/qpos": self.get_qpos(physics),
            "observations/qvel": self.get_qvel(physics),
            "observations/env_state": self.get_env_state(physics),
        }


class _TransferCube(_WithoutRendering, joint_tasks.TransferCubeTask):
    def held(self, physics: Physics) -> bool:
        """Whether the left hand alone holds the cube: off the table, the right hand gone."""
        touching = contacts(physics)
        return (
            any(("red_box", finger) in touching for finger in FINGERS["left"])
            and not any(("red_box", finger) in touching for finger in FINGERS["right"])
            and ("red_box", "table") not in touching
        )


class _Insertion(_WithoutRendering, joint_tasks.InsertionTask):
    def held(self, physics: Physics) -> bool:
        """Whether the peg sits in the socket, each part in its hand and both off the table.

        It sits when at most 5 of the 20 mm down to the pin are left. The contact that gives reward 4 is not
        sufficient: once the hands stop pushing, the stretched grips draw the peg back by about 3 mm.
        """
        touching = contacts(physics)
        parts = ("red_peg", *SOCKET_WALLS)
        return (
            peg_to_pin(physics) <= 0.005
            and any(("red_peg", finger) in touching for finger in FINGERS["right"])
            and any((wall, finger) in touching for wall in SOCKET_WALLS for finger in FINGERS["left"])
            and not any((part, "table") in touching for part in parts)
        )


class _TwoCubes(_WithoutRendering, TwoCubes):
    pass


TASKS = {"transfer_cube": _TransferCube, "insertion": _Insertion, "two_cubes": _TwoCubes}


def peg_to_pin(physics: Physics) -> float:
    """Metres along the socket from the peg's end to the pin's face; infinite while the end is outside."""
    position, axes = physics.named.data.xpos, physics.named.data.xmat
    peg_end = position["peg"] - axes["peg"].reshape(3, 3)[:, 0] * 0.06
    along, *across = axes["socket"].reshape(3, 3).T @ (peg_end - position["socket"])
    inside = along < 0.06 and max(np.abs(across)) < 0.018
    return along - 0.04 if inside else np.inf


class _EndEffector(_WithoutRendering, end_effector_tasks.BimanualViperXEndEffectorTask):
    """Hands follow mocap bodies; the free bodies start in `poses`, which the package would draw without a seed."""

    poses: np.ndarray

    def initialize_episode(self, physics: Physics) -> None:
        self.initialize_robots(physics)
        physics.data.qpos[ROBOT_QPOS:] = self.poses
        super().initialize_episode(physics)

    def get_env_state(self, physics: Physics) -> np.ndarray:
        return physics.data.qpos[ROBOT_QPOS:].copy()

    def get_reward(self, physics: Physics) -> float:
        return 0.0  # only the replay under joint control is scored


def _control(task: object, name: str, control_mode: str) -> control.Environment:
    physics = Physics.from_model(compiled_model(name, control_mode))
    return control.Environment(physics, task, control_timestep=DT)


class Environment:
    """One simulated task under joint control.

    `reward` is that of the last step, 0 to 4; `success`: whether it was 4 at any step since `reset`; `strict_success`:
    whether the goal also holds now, which is meant to be read after the last step.
    """

    def __init__(self, config: Config) -> None:
        self.config, self.task, self.instruction = config, config.task, ALONE.get(config.task)
        self.variants = len(VARIANTS) if config.task == "two_cubes" else 1
        self.instructed: tuple[str, str] | None = None  # the cube's colour and the arm that the instruction names
        self._task = TASKS[config.task]()
        self._environment = _control(self._task, config.task, "joint")
        self._renderer = None
        if config.cameras:
            from sim.renderer import Renderer

            self._renderer = Renderer(self.physics.model.ptr, config.image_height, config.image_width, config.shadows)

    @property
    def physics(self) -> Physics:
        return self._environment.physics

    def reset(self, seed: int) -> dict[str, np.ndarray | str]:
        """Start the episode of `seed`, 0 <= seed < 2**32; poses of the package are those of its `reset(seed)`."""
        poses = sample_poses(self.config.task, seed)
        if self.config.task == "two_cubes":
            self._task.poses, self._task.goal = poses, VARIANTS[seed % len(VARIANTS)]
            self._instruct(random.Random(seed))
        joint_tasks.BOX_POSE[0] = poses  # the package's tasks read it
        self.reward, self.steps, self.steps_to_success, self.diverged = 0, 0, None, False
        self._last = self._observe(self._environment.reset())
        return self._last

    def step(self, action: np.ndarray) -> dict[str, np.ndarray | str]:
        """Apply joint targets (14,) for 0.02 s.

        Raises:
            ValueError: the action has another shape or is not finite.

        If the simulation diverges, the episode ends as a failure (`diverged`).
        """
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (14,) or not np.isfinite(action).all():
            raise ValueError(
                f"the policy's action at step {self.steps} must be 14 finite joint targets, got "
                f"shape {action.shape}: {np.array2string(action, precision=3, threshold=14)}"
            )
        try:
            time_step = self._environment.step(action)
        except control.PhysicsError:
            self.diverged, self.reward = True, 0
            return self._last
        self.reward = int(time_step.reward)
        self.steps += 1
        if self.reward == MAX_REWARD and self.steps_to_success is None:
            self.steps_to_success = self.steps
        self._last = self._observe(time_step)
        return self._last

    @property
    def success(self) -> bool:
        return self.steps_to_success is not None and not self.diverged

    @property
    def strict_success(self) -> bool:
        return self.success and self._task.held(self.physics)

    @property
    def kept(self) -> bool:
        """Whether a recording keeps this episode: its goal holds to the end."""
        return self.strict_success

    @property
    def positions(self) -> np.ndarray:
        """The simulator's whole position vector (Q,), from which `sim.film` draws this moment."""
        return self.physics.data.qpos.copy()

    @property
    def done(self) -> bool:
        return self.diverged or self.steps >= self.config.episode_steps

    def _instruct(self, chance: random.Random) -> None:
        """Choose a phrasing of the goal, or of another cube or arm."""
        self.instructed, self.task = self._task.goal, "_".join(self._task.goal)
        if self.config.instruction == "wrong":
            self.instructed = chance.choice([goal for goal in VARIANTS if goal != self._task.goal])
        colour, arm = self.instructed
        *phrasings, held_out = PHRASINGS
        phrasing = held_out if self.config.instruction == "held_out" else chance.choice(phrasings)
        self.instruction = phrasing.format(colour=colour, arm=arm)

    def _observe(self, time_step) -> dict[str, np.ndarray | str]:
        observation = dict(time_step.observation)
        observation["instruction"] = self.instruction
        for camera in self.config.cameras:
            frame = self._renderer.render(self.physics.data.ptr, camera)
            observation[f"observations/images/{camera}"] = frame
        return observation


class EndEffectorEnvironment:
    """The same scene with hands that follow commanded poses: what the scripted expert drives."""

    def __init__(self, task: str) -> None:
        self._task = _EndEffector()
        self._environment = _control(self._task, task, "end_effector")

    def reset(self, poses: np.ndarray) -> np.ndarray:
        """Put the free bodies into `poses` (O,) and the arms into their starting posture.

        Returns:
            the hand commands (2, 8) that hold this posture, grippers closed; see `step`.
        """
        self._task.poses = poses
        self._environment.reset()
        data = self._environment.physics.data
        return np.concatenate([data.mocap_pos, data.mocap_quat, np.zeros((2, 1))], axis=1)

    def step(self, commands: np.ndarray) -> np.ndarray:
        """Follow hand commands (2, 8), left then right: position (3), quaternion (4), opening (1).

        Returns:
            joint targets (14,) that reproduce the motion: joint angles reached, gripper openings commanded
            (a gripper that holds something never reaches its command, and the command is what squeezes).
        """
        observation = self._environment.step(commands.reshape(-1)).observation
        targets = observation["observations/qpos"]
        gripper_control = self._environment.physics.data.ctrl  # (4,) left finger, its mirror, right, mirror
        targets[6] = normalize_puppet_gripper_position(gripper_control[0])
        targets[13] = normalize_puppet_gripper_position(gripper_control[2])
        return targets
