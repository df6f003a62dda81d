"""`train.py` on a LeRobot data set: its policy takes the data set's keys; a contradiction in it is exit code 2."""

import json

import h5py
import numpy as np
import pytest
from demonstration_files import everything, run_in
from lerobot_files import LENGTHS, write_v3, write_video
from lerobot_policy_files import act_by_hand, write_policy, write_statistics
from smolvla_files import write_smolvla

import predict
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


@pytest.mark.slow
def test_predictions_on_a_data_set(folder):
    """The chunks that the network predicts for the data set's samples; the history is empty as an episode begins."""
    import torch

    from data.demonstrations import Config, build

    keys = ["dataset.n_obs_steps=2", "dataset.past_actions=1", "model=regression", "model.network=mlp"]
    keys += ["model.backbone=resnet10", "dataset.image_size=[32, 48]"]
    train.main(arguments(folder, *keys))
    output = folder / "predicted.h5"
    predict.main(["--checkpoint", str(folder / "out"), "--input", str(folder / "robot"), "--output", str(output)])
    policy = load_policy(folder / "out")
    config = Config(path=str(folder / "robot"), chunk_size=5, image_size=[32, 48], n_obs_steps=2, past_actions=1)
    batch = everything(build(config, run_in(folder / "cache")).train_dataset)
    with torch.no_grad():
        chunks = policy.model(state=batch["state"], images=batch["images"])["actions"][:, 1:]
    expected = np.split(policy.processor.decode_action(chunks.numpy()), np.cumsum(LENGTHS)[:-1])
    with h5py.File(output) as root:
        assert sorted(root) == ["episode_0", "episode_1", "episode_2"]
        for number, chunk in enumerate(expected):
            np.testing.assert_allclose(root[f"episode_{number}/actions"], chunk, rtol=1e-4, atol=1e-4)
    file = folder / "robot/meta/info.json"
    file.write_text(file.read_text().replace("observation.images.top", "observation.images.side"))
    words = ["--checkpoint", str(folder / "out"), "--input", str(folder / "robot"), "--output", str(output), "--strict"]
    with pytest.raises(SystemExit) as left:
        command_line(predict.main, words)
    assert left.value.code == 2


@pytest.mark.slow
def test_training_from_a_lerobot_policy(folder):
    """Settings, weights and normalization are the policy's; a step at almost no rate keeps its answers."""
    import torch

    statistics = {
        "observation.state": {"mean": [0.1] * 5, "std": [0.7] * 5},
        "observation.environment_state": {"mean": [0.0] * 2, "std": [1.0] * 2},
        "action": {"mean": [0.3] * 4, "std": [2.0] * 4},
    }
    weights = write_policy(folder / "policy", "act", 5, 4, 2, chunk=5, statistics=statistics)
    keys = ["dataset.cameras=[]", "dataset.state_keys=[observation.state,observation.environment_state]"]
    keys += ["dataset.rename={observation.effort: observation.environment_state}"]
    keys += [f"model_name_or_path={folder / 'policy'}", "model=act", "learning_rate=1e-12"]
    train.main([word for word in arguments(folder, *keys) if word != "model.hidden_dim=16"])
    policy = load_policy(folder / "out")
    assert policy.model.config.hidden_dim == 8 and policy.model.config.env_state_dim == 2
    state, environment = np.arange(5.0) / 5, np.array([0.5, -0.5])
    action = policy({"observation.state": state, "observation.environment_state": environment})
    scaled = torch.tensor((state - 0.1) / 0.7, dtype=torch.float32)[None]
    chunk = act_by_hand(weights, scaled, torch.tensor(environment, dtype=torch.float32)[None])
    np.testing.assert_allclose(action, chunk[0, 0].detach().numpy() * 2 + 0.3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("robot", ["its own", "another"])
def test_training_from_a_smolvla(folder, robot, capsys):
    """Its tokenizer and weights; its normalization too, if the robot is its own. An adapter keeps its base."""
    changes = {} if robot == "its own" else {"output_features": {"action": {"type": "ACTION", "shape": [6]}}}
    weights, _ = write_smolvla(folder / "smolvla", ["pick"], cameras=("top",), **changes)
    statistics = {
        "observation.state": {"mean": [0.1] * 5, "std": [0.7] * 5},
        "action": {"mean": [0.3] * 4, "std": [2.0] * 4},
    }
    write_statistics(folder / "smolvla/policy", statistics)
    keys = [
        f"model_name_or_path={folder / 'smolvla/policy'}",
        "model=vla",
        "freeze_vision_tower=true",
        "lora_enable=true",
    ]
    train.main([word for word in arguments(folder, *keys, "lora_r=2") if word != "model.hidden_dim=16"])
    saved = json.loads((folder / "out/statistics.json").read_text())
    assert (saved["action"]["std"] == [2.0] * 4) == (robot == "its own")
    assert ("as by the policy" in capsys.readouterr().out) == (robot == "its own")
    policy = load_policy(folder / "out")
    state = policy.model.state_dict()
    name = next(name for name in state if name.endswith("text_model.embed_tokens.weight"))
    assert state[name].equal(weights["model.vlm_with_expert.vlm.model.text_model.embed_tokens.weight"])
    frame = np.zeros((48, 64, 3), np.uint8)
    observation = {"observation.state": np.zeros(5), "observation.images.top": frame, "instruction": "pick"}
    assert np.shape(policy(observation)) == (4,)


@pytest.mark.slow
def test_a_contradiction_is_exit_code_2_and_one_line(folder, capsys):
    video = folder / "robot/videos/observation.images.top/chunk-000/file-000.mp4"
    write_video(video, [np.zeros((48, 64, 3), np.uint8)] * (sum(LENGTHS[:2]) - 1))
    with pytest.raises(SystemExit) as left:
        command_line(train.main, arguments(folder))
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert left.value.code == 2 and len(errors) == 1 and str(video) in errors[0], errors
    assert not (folder / "out").exists()
