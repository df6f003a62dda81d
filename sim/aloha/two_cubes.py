"""A red and a blue cube before both arms: which cube to lift, and with which arm, is only in the instruction.

The scene is that of the transfer cube with a second cube. Imported by `sim.aloha.environment`.
"""

from __future__ import annotations

import mujoco
import numpy as np
from dm_control.mujoco import Physics
from gym_aloha.constants import START_ARM_POSE
from gym_aloha.tasks import sim as joint_tasks

from sim.aloha.contacts import FINGERS, contacts
from sim.aloha.instructions import ARMS, COLOURS

LIFTED_M = 0.1  # height of a cube's centre from which it counts as lifted; on the table it is 0.02


def with_blue_cube(path: str) -> mujoco.MjModel:
    """The scene of a file with a blue copy of its red cube."""
    spec = mujoco.MjSpec.from_file(path)
    for keyframe in list(spec.keys):
        spec.delete(keyframe)  # of a scene with one free body; episodes set all positions themselves
    red, red_geom = spec.body("box"), spec.geom("red_box")
    blue = spec.worldbody.add_body(
        name="blue_cube", pos=red.pos, mass=red.mass, inertia=red.inertia, ipos=red.ipos, explicitinertial=True
    )
    blue.add_joint(name="blue_box_joint", type=mujoco.mjtJoint.mjJNT_FREE, frictionloss=0.01)
    shape = {key: getattr(red_geom, key) for key in ("type", "size", "condim", "solimp", "solref", "friction")}
    blue.add_geom(name="blue_box", rgba=[0, 0, 1, 1], **shape)
    return spec.compile()


def sample_cubes(seed: int) -> np.ndarray:
    """Starting poses (14,), red then blue: one cube nearer to the front of the table, which one by chance."""
    random = np.random.RandomState(seed)
    rows = random.uniform([0.4, 0.54], [0.46, 0.6])[random.permutation(2)]
    columns = random.uniform(-0.1, 0.1, 2)
    return np.concatenate([[x, y, 0.05, 1, 0, 0, 0] for x, y in zip(columns, rows, strict=True)])


class TwoCubes(joint_tasks.BimanualViperXTask):
    """Reward 4 while the instructed arm alone holds the instructed cube, lifted; 2 while it touches it."""

    poses: np.ndarray  # (14,), set by the environment before an episode
    goal: tuple[str, str]  # colour and arm

    def initialize_episode(self, physics: Physics) -> None:
        with physics.reset_context():
            physics.data.qpos[:] = [*START_ARM_POSE, *self.poses]
            np.copyto(physics.data.ctrl, START_ARM_POSE)
        super().initialize_episode(physics)

    def get_env_state(self, physics: Physics) -> np.ndarray:
        return physics.data.qpos[len(START_ARM_POSE) :].copy()

    def get_reward(self, physics: Physics) -> int:
        colour, arm = self.goal
        touching = self._touching(physics)
        if touching[colour] != {arm}:
            return 0
        return 4 if self._height(physics, colour) >= LIFTED_M else 2

    def held(self, physics: Physics) -> bool:
        """Whether the goal holds, and the other cube is untouched on the table."""
        (other,) = set(COLOURS) - {self.goal[0]}
        left_alone = not self._touching(physics)[other] and self._height(physics, other) < LIFTED_M
        return self.get_reward(physics) == 4 and left_alone

    def _touching(self, physics: Physics) -> dict[str, set[str]]:
        """The arms that touch each cube now."""
        pairs = contacts(physics)
        return {
            colour: {
                arm
                for arm in ARMS
                for finger in FINGERS[arm]
                if {(f"{colour}_box", finger), (finger, f"{colour}_box")} & pairs
            }
            for colour in COLOURS
        }

    def _height(self, physics: Physics, colour: str) -> float:
        return float(physics.named.data.geom_xpos[f"{colour}_box"][2])
