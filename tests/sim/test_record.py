"""Recordings: layout, determinism, interruption, and what is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from simulated_policies import HOME

from sim.aloha import expert, make
from sim.aloha.config import Config
from sim.record import Recorded, record, recorded

ROOT = Path(__file__).resolve().parents[2]
STATE = Config(task="transfer_cube")


def quiet(line):
    pass


def contents(path):
    """All arrays and attributes of an episode file."""
    with h5py.File(path, "r") as file:
        arrays = {}
        file.visititems(lambda name, node: arrays.update({name: node[()]}) if hasattr(node, "dtype") else None)
        return arrays, dict(file.attrs)


def assert_same_episodes(one, other, count):
    for index in range(count):
        (arrays, attributes), (arrays2, attributes2) = (
            contents(folder / f"episode_{index}.hdf5") for folder in (one, other)
        )
        assert attributes == attributes2 and arrays.keys() == arrays2.keys()
        assert all(np.array_equal(arrays[key], arrays2[key]) for key in arrays)


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """Three episodes recorded by two processes; tests only read it."""
    folder = tmp_path_factory.mktemp("recording")
    report = record(STATE, folder, 3, seed=7, num_workers=2, report=quiet)
    assert (report.kept, report.recorded) == (3, 3)
    return folder


@pytest.mark.slow
def test_layout(recording):
    arrays, attributes = contents(recording / "episode_1.hdf5")
    assert {key: (value.shape, value.dtype.name) for key, value in arrays.items()} == {
        "action": ((400, 14), "float64"),
        "observations/qpos": ((400, 14), "float64"),
        "observations/qvel": ((400, 14), "float64"),
        "observations/env_state": ((400, 7), "float64"),
        "reasoning/subtask": ((400,), "object"),
    }
    phases = list(dict.fromkeys(arrays["reasoning/subtask"]))
    assert phases[0] == b"move the right hand over the cube" and phases[-1] == b"withdraw the right hand"
    assert len(phases) == 7
    assert attributes["sim"] and attributes["success"] and attributes["strict_success"]
    assert attributes["task"] == "transfer_cube"
    attempt = int(attributes["discarded_attempts"])
    (start,) = np.random.SeedSequence([7, 1, attempt]).generate_state(1)
    assert attributes["seed"] == start  # one task: the seed is not moved to that of another
    names = sorted(os.listdir(recording))
    assert names == ["episode_0.hdf5", "episode_1.hdf5", "episode_2.hdf5", "recording.json"]
    assert json.loads((recording / "recording.json").read_text())["kept"] == 3


@pytest.mark.slow
def test_replaying_the_actions_gives_the_observations_before_them(recording):
    arrays, attributes = contents(recording / "episode_2.hdf5")
    environment = make(STATE)
    observation = environment.reset(int(attributes["seed"]))
    for step, action in enumerate(arrays["action"]):
        assert np.array_equal(observation["observations/qpos"], arrays["observations/qpos"][step])
        observation = environment.step(action)
    assert environment.strict_success


@pytest.mark.slow
def test_episodes_depend_on_neither_the_number_of_workers_nor_how_many_are_asked(recording, tmp_path):
    record(STATE, tmp_path, 2, seed=7, num_workers=0, report=quiet)
    assert_same_episodes(recording, tmp_path, 2)


@pytest.mark.slow
def test_other_seeds_and_indices_give_other_episodes(recording, tmp_path):
    record(STATE, tmp_path, 1, seed=8, num_workers=0, report=quiet)
    paths = [tmp_path / "episode_0.hdf5", recording / "episode_0.hdf5", recording / "episode_1.hdf5"]
    starts = [contents(path)[0]["observations/env_state"][0] for path in paths]
    assert len({tuple(start) for start in starts}) == 3


@pytest.mark.slow
def test_a_killed_recording_leaves_whole_episodes_and_is_completed(tmp_path):
    """SIGKILL to the parent in the middle; then the same command again, compared with an undisturbed one."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    code = (
        "import sys; from pathlib import Path; from sim.aloha import Config; from sim.record import record\n"
        "record(Config(task='transfer_cube'), Path(sys.argv[1]), 6, seed=0, num_workers=2)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, killed], cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(killed.glob("episode_*.hdf5")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(1.5)  # its workers end with it
    survivors = list(killed.glob("episode_*.hdf5"))
    assert 1 <= len(survivors) < 6
    assert all(contents(path)[0]["action"].shape == (400, 14) for path in survivors)
    report = record(STATE, killed, 6, seed=0, report=quiet)
    assert report.kept == 6 and report.recorded == 6 - len(survivors)
    assert not list(killed.glob(".*.tmp"))
    record(STATE, whole, 6, seed=0, report=quiet)
    assert_same_episodes(killed, whole, 6)


@pytest.mark.slow
def test_more_episodes_than_asked_are_kept(recording):
    report = record(STATE, recording, 1, seed=7, report=quiet)
    assert (report.kept, report.recorded) == (3, 0)


@pytest.mark.slow
def test_failures_are_discarded_counted_and_tried_again(tmp_path, monkeypatch):
    """The expert stands still on the first two attempts of each episode."""
    genuine, calls = expert.plan, []

    def clumsy(config, poses, random, jitter, instructed):
        calls.append(poses)
        if len(calls) % 3:
            return np.tile(HOME, (400, 1)), ["stand still"] * 400
        return genuine(config, poses, random, jitter, instructed)

    monkeypatch.setattr(expert, "plan", clumsy)
    report = record(STATE, tmp_path, 2, seed=0, num_workers=0, report=quiet)
    assert (report.kept, report.discarded) == (2, 4)
    assert contents(tmp_path / "episode_1.hdf5")[1]["discarded_attempts"] == 2
    assert json.loads((tmp_path / "recording.json").read_text())["discarded"] == 4
    assert len({tuple(poses) for poses in calls}) == 6  # every attempt from another start


@pytest.mark.slow
@pytest.mark.keys("env(aloha).episode_steps")
def test_an_expert_that_never_succeeds_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="50 attempts at episode 0 failed; use a jitter below 1 or more than 5"):
        record(Config(task="transfer_cube", episode_steps=5), tmp_path, 1, seed=0, num_workers=0)
    assert not list(tmp_path.glob("episode*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "seed", "jitter", "message"),
    [
        (STATE, 8, 1.0, "recorded with seed 7, not 8"),
        (STATE, 7, 0.5, "recorded with jitter 1.0, not 0.5"),
        (Config(task="insertion"), 7, 1.0, "recorded with task 'transfer_cube', not 'insertion'"),
        (Config(task="transfer_cube", cameras=["top"]), 7, 1.0, r"recorded with cameras \[\], not \['top'\]"),
    ],
)
def test_another_recording_in_the_folder_is_refused(recording, config, seed, jitter, message):
    with pytest.raises(ValueError, match=message):
        record(config, recording, 5, seed=seed, jitter=jitter, report=quiet)


def test_a_recording_from_before_a_key_is_one_of_its_default(recording, tmp_path):
    stored = json.loads((recording / "recording.json").read_text())
    del stored["settings"]["config"]["shadows"]
    (tmp_path / "recording.json").write_text(json.dumps(stored))
    assert recorded(STATE, tmp_path).seed == 7
    with pytest.raises(ValueError, match="recorded with shadows False, not True"):
        recorded(Config(task="transfer_cube", shadows=True), tmp_path)


def test_bad_folders_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot record into .*file"):
        record(STATE, tmp_path / "file", 1, seed=0)
    (tmp_path / "episode_0.hdf5").write_text("")
    with pytest.raises(ValueError, match=r"holds episodes but no recording\.json"):
        record(STATE, tmp_path, 1, seed=0)


@pytest.mark.slow
def test_what_a_folder_holds_is_told_without_the_simulator(tmp_path):
    assert recorded(STATE, tmp_path) is None
    record(STATE, tmp_path, 2, seed=3, num_workers=0, report=quiet)
    assert recorded(STATE, tmp_path) == Recorded(kept=2, wanted=2, seed=3, jitter=1.0)
    (tmp_path / "episode_1.hdf5").unlink()  # as after an interruption
    assert recorded(STATE, tmp_path) == Recorded(kept=1, wanted=2, seed=3, jitter=1.0)
    with pytest.raises(ValueError, match="was recorded with episode_steps"):
        recorded(Config(task="transfer_cube", episode_steps=390), tmp_path)
