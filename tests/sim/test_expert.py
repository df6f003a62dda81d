"""The scripted experts: that they succeed, and their geometry against MuJoCo's."""

import numpy as np
import pytest

from sim.aloha import demonstrate, expert, make, simulator
from sim.aloha.config import Config


@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_rotation_agrees_with_mujoco(axis):
    simulator()
    import mujoco

    theirs = np.zeros(4)
    mujoco.mju_axisAngle2Quat(theirs, np.eye(3)["xyz".index(axis)], np.radians(-60))
    assert np.allclose(expert.rotation(axis, -60), theirs)


def test_commands_pass_through_the_waypoints_in_straight_lines():
    turn = expert.rotation("x", 90)
    track = expert.commands(
        [
            expert.Waypoint(0, np.zeros(3), expert.rotation("x", 0), 0.0),
            expert.Waypoint(4, np.array([0.4, 0, -0.8]), turn, 1.0),
        ],
        steps=6,
    )
    assert track.shape == (6, 8)
    assert np.allclose(track[0, :3], [0.1, 0, -0.2])  # a quarter of the way
    assert np.allclose(track[:, 7], [0.25, 0.5, 0.75, 1, 1, 1])
    assert np.allclose(track[3:, 3:7], turn)  # stays after the last waypoint
    assert np.allclose(np.linalg.norm(track[:, 3:7], axis=1), 1)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["transfer_cube", "insertion", "two_cubes"])
def test_the_expert_succeeds_on_nearly_every_start(task):
    environment = make(Config(task=task))
    strict = 0
    for seed in range(8):
        demonstrate(environment, seed, jitter=1.0)
        strict += environment.success and environment.strict_success and environment.done
    assert strict >= 7


def test_subtasks_name_what_is_done_on_the_way_to_the_next_waypoint():
    def waypoint(step, subtask):
        return expert.Waypoint(step, np.zeros(3), expert.rotation("x", 0), 0.0, subtask)

    track = [waypoint(0, ""), waypoint(1.5, "move"), waypoint(4, "close"), waypoint(5, "lift")]
    assert expert.subtasks(track, 7) == ["move", "close", "close", "close", "lift", "lift", "lift"]


@pytest.mark.slow
def test_jitter_varies_the_motion_and_zero_does_not():
    config = Config(task="transfer_cube", episode_steps=120)
    poses = simulator().sample_poses("transfer_cube", 0)

    def plan(random, jitter):
        return expert.plan(config, poses, np.random.default_rng(random), jitter)[0]

    assert np.array_equal(plan(0, 0.0), plan(1, 0.0))
    assert np.array_equal(plan(0, 1.0), plan(0, 1.0))
    assert np.abs(plan(0, 1.0) - plan(1, 1.0)).max() > 0.01


@pytest.mark.slow
def test_joint_targets_are_reached_angles_and_commanded_grippers():
    """The right gripper squeezes the cube: told 0, it stays well open, and the target must say 0."""
    environment = make(Config(task="transfer_cube"))
    episode = demonstrate(environment, 0, jitter=0.0)
    assert episode["action"].shape == (400, 14)
    assert np.allclose(episode["action"][190:300, 13], 0, atol=1e-9)
    assert episode["observations/qpos"][250, 13] > 0.3
