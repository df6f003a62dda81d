"""`eval.load_policy`: raw observations in, actions in the robot's units out."""

import json
import shutil

import numpy as np
import pytest
from documents import blocks
from safetensors.numpy import load_file, save_file
from small_runs import SmallRuns

from eval import load_policy

STATE = np.random.default_rng(3).normal(size=(4, 14))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    runs = SmallRuns(tmp_path_factory.mktemp("policy"))
    runs()
    return runs.folder / "out"


def first_action_by_hand(folder, state):
    """zscore by statistics.json, the network's two layers as matrices, and back."""
    weights = load_file(folder / "model.safetensors")
    scales = json.loads((folder / "statistics.json").read_text())
    hidden = (state - scales["state"]["mean"]) / np.maximum(scales["state"]["std"], 0.01)
    hidden = np.maximum(hidden @ weights["trunk.0.weight"].T + weights["trunk.0.bias"], 0)
    action = (hidden @ weights["head.weight"].T + weights["head.bias"])[:14]
    return action * np.maximum(scales["action"]["std"], 0.01) + scales["action"]["mean"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "observation",
    [
        {"observations/qpos": STATE[0]},
        {"/observations/qpos": STATE[0]},
        {"observations": {"qpos": STATE[0], "qvel": None}, "gripper": "open"},
        {"/observations/": {"/qpos": list(STATE[0])}},
    ],
)
def test_an_action_in_the_units_of_the_demonstrations(run, observation):
    policy = load_policy(run, "cpu")
    np.testing.assert_allclose(policy(observation), first_action_by_hand(run, STATE[0]), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("observation", "parts"),
    [
        ({"observations": {"pos": STATE[0]}}, ["observations/qpos", "observations/pos"]),
        ({}, ["observations/qpos", "nothing"]),
        ({"observations/qpos": [*STATE[0][:5], np.nan, *STATE[0][6:]]}, ["observations/qpos", "dimension 5", "nan"]),
        ({"observations/qpos": [np.inf] * 14}, ["dimension 0", "inf"]),
        ({"observations/qpos": STATE[0][:9]}, ["9 dimensions", "14"]),
    ],
)
def test_an_observation_with_an_error_is_refused(run, observation, parts):
    with pytest.raises(ValueError) as refused:
        load_policy(run, "cpu")(observation)
    assert all(part in str(refused.value) for part in parts), refused.value


def test_an_action_that_is_not_finite_is_refused(run, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(run, folder)
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"head.bias": weights["head.bias"] * np.float32(np.nan)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="not finite"):
        load_policy(folder, "cpu")({"observations/qpos": STATE[0]})


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=str(tmp_path)):
        load_policy(tmp_path)


def test_the_lines_in_the_readme(run, in_root):
    """They drive a robot with the actions that the network plans for its states."""
    (code,) = (text for language, text in blocks(in_root / "README.md") if language == "python")
    moves = []

    class Robot:
        def __iter__(self):
            return iter([{"observations": {"qpos": state}} for state in STATE])

        def move(self, action):
            moves.append(action)

    assert len(code.splitlines()) == 6
    exec(code.replace("runs/act", str(run)), {"robot": Robot()})
    assert np.shape(moves) == (4, 14)
    # chunks of three actions: the first and the fourth state are planned for
    np.testing.assert_allclose(moves[0], first_action_by_hand(run, STATE[0]), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(moves[3], first_action_by_hand(run, STATE[3]), rtol=1e-4, atol=1e-4)
