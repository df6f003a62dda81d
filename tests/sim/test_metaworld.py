"""Meta-World behind the contract of the simulators; its own package is what values are compared with."""

import json
import sys
import warnings

import h5py
import numpy as np
import pytest

from sim.contract import simulator
from sim.film import film
from sim.metaworld import demonstrate, make
from sim.metaworld.config import Config
from sim.metaworld.instructions import OPPOSITES, SETS, TASKS
from sim.metaworld.subtasks import NAMED, PHASES, subtask
from sim.record import record
from sim.rollout import expert_successes, rollout, score

metaworld = pytest.importorskip("metaworld", reason="pip install --no-deps metaworld")


def quiet(line):
    pass


class Fixed:
    """A policy that always does the same."""

    def __init__(self):
        self.instructions = []

    def reset(self):
        pass

    def __call__(self, observation):
        return np.array([0.1, 0.2, -0.1, 0.0])


@pytest.mark.slow
def test_an_episode_is_that_of_the_package():
    """Starts, states and successes of Meta-World's own environment with the same random vector."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    from metaworld.policies import ENV_POLICY_MAP

    ours = make(Config(task="door-open"))
    state = ours.reset(5)["observations/state"]
    theirs, task = ALL_V3_ENVIRONMENTS["door-open-v3"](), ours.scene.env._last_rand_vec
    theirs._set_task_called, theirs._freeze_rand_vec, theirs._last_rand_vec = True, True, task
    theirs._partially_observable = False
    theirs.__dict__.pop("sawyer_observation_space", None)
    expected, expert = theirs.reset()[0], ENV_POLICY_MAP["door-open-v3"]()
    np.testing.assert_allclose(state, expected, atol=1e-9)
    succeeded = False
    while not ours.done:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            action = np.clip(expert.get_action(expected), -1, 1)
        expected, _, _, _, info = theirs.step(action.astype(np.float32))
        state = ours.step(ours.expert_action())["observations/state"]
        np.testing.assert_allclose(state, expected, atol=1e-6)
        succeeded = succeeded or bool(info["success"])
    assert ours.success and succeeded


@pytest.mark.slow
def test_a_seed_is_an_episode_whatever_came_before():
    environment = make(Config(task="mt3"))

    def episode(seed):
        return demonstrate(environment, seed, jitter=1.0), environment.instruction

    first, instruction = episode(7)
    episode(3)
    again, same_instruction = episode(7)
    assert first.keys() == again.keys() and all(np.array_equal(first[key], again[key]) for key in first)
    assert instruction == same_instruction
    assert first["action"].shape[1] == 4 and np.abs(first["action"]).max() <= 1
    assert first["observations/state"].shape == (len(first["action"]), 39)


@pytest.mark.slow
def test_seeds_take_the_tasks_in_turn():
    environment = make(Config(task=["reach", "push"], episode_steps=5))
    tasks = []
    for seed in range(4):
        environment.reset(seed)
        tasks.append(environment.task)
    assert tasks == ["reach", "push", "reach", "push"] and environment.variants == 2


@pytest.mark.slow
@pytest.mark.keys("env(metaworld).instruction")
def test_instructions():
    tasks = SETS["mt3"]
    for seed in range(12):
        right, wrong, held_out = (make(Config(instruction=kind)) for kind in ("right", "wrong", "held_out"))
        for environment in (right, wrong, held_out):
            environment.reset(seed)
        task = tasks[seed % 3]
        assert right.instruction in TASKS[task][:-1] and held_out.instruction == TASKS[task][-1]
        assert wrong.instruction in TASKS[OPPOSITES[task]][:-1] and wrong.task == task
        assert np.array_equal(right.state, wrong.state)
    unlike = make(Config(task=["reach", "door-open"], instruction="wrong"))  # without its opposite any other task
    unlike.reset(0)
    assert unlike.instruction in TASKS["door-open"][:-1]


@pytest.mark.slow
def test_reach_and_pick_place_differ_in_nothing_but_the_instruction():
    one, other = make(Config(task="reach")), make(Config(task="pick-place"))
    for seed in range(3):
        start, same = one.reset(seed), other.reset(seed)
        assert np.array_equal(start["observations/state"], same["observations/state"])
        assert start["instruction"] != same["instruction"]


@pytest.mark.slow
def test_the_expert_obeys_a_wrong_instruction():
    """So its rate is what a policy gets that reads the instruction; reach fulfils no other task's goal."""
    config = Config(task="mt3", instruction="wrong", episode_steps=120)
    environment = make(config)
    for seed in (1, 2):  # push and pick-place
        episode = demonstrate(environment, seed, jitter=0.0)
        assert not environment.success and set(episode["reasoning/subtask"]) == {"move the hand to the goal"}
        goal = episode["observations/state"][-1][36:]
        assert np.linalg.norm(environment.scene.env.tcp_center - goal) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("task", sorted(NAMED))
def test_subtasks_follow_the_expert(task):
    """An episode has the phases in order, and ends in the last one; each names where the expert moves the hand."""
    environment = make(Config(task=task))
    episode = demonstrate(environment, 3, jitter=0.0)
    phases = list(dict.fromkeys(episode["reasoning/subtask"]))
    assert environment.success and 1 <= len(phases) <= 4
    if task in PHASES:
        assert phases[0] == f"move over the {PHASES[task].object}" and phases[-1] == PHASES[task].last


def test_subtasks_by_hand():
    state = np.zeros(39)
    state[:4], state[4:7], state[36:] = (0.0, 0.6, 0.2, 1.0), (0.05, 0.65, 0.02), (0.0, 0.8, 0.2)
    assert subtask("pick-place", state) == "move over the puck"
    state[:2] = state[4] - 0.005, state[5]
    assert subtask("pick-place", state) == "lower the hand to the puck"
    state[2] = 0.05
    assert subtask("pick-place", state) == "close the gripper" and subtask("push", state).startswith("push the puck")
    state[3] = 0.6
    assert subtask("pick-place", state) == "carry the puck to the goal"
    assert subtask("reach", state) == "move the hand to the goal"


def test_phrasings_are_of_one_task_each():
    phrasings = [phrasing for task in TASKS.values() for phrasing in task]
    assert len(TASKS) == 50 and len(set(phrasings)) == len(phrasings) and all(len(task) >= 3 for task in TASKS.values())


@pytest.mark.slow
@pytest.mark.keys("env(metaworld).show_goal", "env(metaworld).episode_steps", "env(metaworld).task")
def test_the_goal_can_be_hidden_and_episodes_end():
    shown, hidden = make(Config(task="push", episode_steps=3)), make(Config(task="push", show_goal=False))
    assert shown.reset(1)["observations/state"][36:].any() and not hidden.reset(1)["observations/state"][36:].any()
    steps = 0
    while not shown.done:
        shown.step(np.zeros(4))
        steps += 1
    assert steps == 3 and not shown.success


@pytest.mark.slow
@pytest.mark.parametrize("action", [np.zeros(3), np.array([0, 0, np.nan, 0])])
def test_actions_that_are_none_are_refused(action):
    environment = make(Config(task="reach"))
    environment.reset(0)
    with pytest.raises(ValueError, match="step 0 must be 4 finite numbers"):
        environment.step(action)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"task": "door-opne"}, "did you mean `door-open`"),
        ({"task": "mt3", "cameras": ["corner9"]}, "corner9"),
        ({"task": "mt3", "cameras": ["corner", "corner"]}, "twice"),
        ({"task": "reach", "instruction": "wrong"}, "only one"),
    ],
)
def test_what_a_configuration_refuses(keys, message):
    with pytest.raises(ValueError, match=message):
        Config(**keys)


def test_names_of_tasks():
    assert Config(task="door-open-v3").tasks == ["door-open"] and len(Config(task="mt10").tasks) == 10
    assert Config(task=["mt3", "reach", "door-open"]).tasks == ["reach", "push", "pick-place", "door-open"]


@pytest.mark.slow
def test_a_recording(tmp_path):
    config = Config(task="mt3")
    report = record(config, tmp_path, 6, seed=0, num_workers=2, report=quiet)
    assert report.kept == 6
    for index in range(6):
        with h5py.File(tmp_path / f"episode_{index}.hdf5") as file:
            task = SETS["mt3"][index % 3]
            assert (
                file.attrs["task"] == task and file.attrs["instruction"] in TASKS[task][:-1] and file.attrs["success"]
            )
            assert len(file["action"]) == len(file["observations/state"]) == len(file["reasoning/subtask"])
            moves = (
                {"move over the puck", "lower the hand to the puck"}
                if task != "reach"
                else {"move the hand to the goal"}
            )
            assert file["reasoning/subtask"].asstr()[0] in moves
    assert json.loads((tmp_path / "recording.json").read_text())["versions"].keys() == {"mujoco", "metaworld"}


@pytest.mark.slow
def test_scores_of_each_task_and_of_the_expert():
    config = Config(task=["reach", "push"], episode_steps=120)
    results = rollout(Fixed, config, 4, seed=1000, num_workers=0, report=quiet)
    scores = score(results)
    assert scores["success_rate"] == 0 and scores["push/success_rate"] == scores["reach/success_rate"] == 0
    assert expert_successes(config, 4, seed=1000, num_workers=0, report=quiet) == [True] * 4


@pytest.mark.slow
@pytest.mark.keys("env(metaworld).cameras", "env(metaworld).image_height", "env(metaworld).image_width")
@pytest.mark.keys("env(metaworld).shadows", "env(metaworld).antialias")
def test_cameras_and_films(tmp_path):
    config = Config(task="push", cameras=["corner"], image_height=48, image_width=64, episode_steps=20)
    try:
        environment = make(config)
        frame = environment.reset(0)["observations/images/corner"]
    except ValueError as error:
        pytest.skip(f"nothing renders here: {error}")
    assert frame.shape == (48, 64, 3) and frame.std() > 10
    for key, value in (("shadows", True), ("antialias", False)):
        other = make(Config(task="push", cameras=["corner"], image_height=48, image_width=64, **{key: value}))
        assert not np.array_equal(other.reset(0)["observations/images/corner"], frame)
    results = rollout(Fixed, config, 1, seed=0, num_workers=0, film_episodes=1, report=quiet)
    assert [path.suffix for path in film(config, results, tmp_path, report=quiet)] == [".mp4", ".png"]


def test_the_module_of_a_configuration():
    """That which `simulator` names, or else the one that defines the class."""
    assert simulator(Config()).__name__ == "sim.metaworld"

    class Own:
        pass

    assert simulator(Own()) is sys.modules[__name__]
