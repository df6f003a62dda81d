"""`train.py` on a LeRobot data set: its policy takes the data set's keys; a contradiction in it is exit code 2."""

import json

import numpy as np
import pytest
from lerobot_files import LENGTHS, write_v3, write_video

import train
from eval import load_policy
from loader.command_line.entry import command_line


def arguments(tmp_path, *more):
    settings = [f"dataset.path={tmp_path / 'robot'}", "dataset.chunk_size=5", "dataset.image_size=[24, 32]"]
    model = ["model.hidden_dim=16"]
    words = ["--task_name", str(tmp_path / "robot.yaml"), "--output_dir", str(tmp_path / "out"), "--max_steps", "2"]
    return [*words, "--report_to", "none", "--set", *settings, *model, *more]


@pytest.fixture
def folder(tmp_path):
    write_v3(tmp_path / "robot", cameras=("top",))
    (tmp_path / "robot.yaml").write_text("dataset:\n  name: demonstrations\nmodel: mlp\n")
    return tmp_path


@pytest.mark.slow
def test_a_policy_is_trained_and_takes_the_observations_of_the_data_set(folder):
    train.main(arguments(folder, "dataset.cameras=[]"))
    saved = json.loads((folder / "out/statistics.json").read_text())["observation"]
    assert saved["state_keys"] == ["observation.state"]
    policy = load_policy(folder / "out")
    action = policy({"observation.state": np.zeros(5)})
    assert np.shape(action) == (4,)


def test_a_contradiction_is_exit_code_2_and_one_line(folder, capsys):
    video = folder / "robot/videos/observation.images.top/chunk-000/file-000.mp4"
    write_video(video, [np.zeros((48, 64, 3), np.uint8)] * (sum(LENGTHS[:2]) - 1))
    with pytest.raises(SystemExit) as left:
        command_line(train.main, arguments(folder))
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert left.value.code == 2 and len(errors) == 1 and str(video) in errors[0], errors
    assert not (folder / "out").exists()
