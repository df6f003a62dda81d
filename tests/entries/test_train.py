"""`train.py` from end to end on small synthetic data, and bad input: one line, exit code 2, nothing written."""

import os
import re
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
import yaml
from demonstration_files import write_act_episode, write_act_folder
from run_results import error_line, error_lines, metrics, same

import train
from loader.command_line.parser import HyperArguments
from loader.resolve.resolver import read_saved

SMALL = ["model.hidden_dim=16", "model.num_heads=2", "model.feedforward_dim=16", "model.cvae_layers=1"]
SMALL += ["model.encoder_layers=1", "dataset.chunk_size=5", "model.dropout=0.1"]


@pytest.fixture
def episodes(tmp_path):
    write_act_folder(tmp_path / "episodes", (20,) * 4)
    return tmp_path / "episodes"


@pytest.fixture
def command(in_root, tmp_path, episodes):
    """`command(*settings, **flags)`: the arguments of a small run."""

    def build(*settings, out="out", data=None, **flags):
        words = ["--output_dir", str(tmp_path / out), "--report_to", "none", "--logging_steps", "2"]
        for name, value in {"max_steps": 4, "save_strategy": "no", **flags}.items():
            words += [f"--{name}", str(value)]
        return [*words, "--set", f"dataset.path={data or episodes}", *SMALL, *settings]

    return build


@pytest.mark.slow
def test_a_run_leaves_a_self_contained_folder(command, tmp_path, capfd):
    trainer = train.main(command(eval_steps=2, report_to="tensorboard"))
    out = tmp_path / "out"
    files = {"run.yaml", "metrics.jsonl", "statistics.json", "config.json", "model.safetensors", "runs"}
    assert files <= set(os.listdir(out))
    for key in ("loss", "loss_action", "loss_kl", "grad_norm", "learning_rate", "eval_loss"):
        assert list(metrics(out, key)) == [2, 4], key
    shown = capfd.readouterr()
    assert "4 episodes" in shown.out and "step 4/4" in shown.err and "Warning" not in shown.err
    assert same(trainer, trainer.model.__class__.from_pretrained(out).state_dict())


@pytest.mark.slow
def test_run_yaml_repeats_the_run(command, tmp_path):
    train.main(command(seed=3))
    saved = tmp_path / "out" / "run.yaml"
    assert read_saved(saved).hyper.seed == 3 and yaml.safe_load(saved.read_text())["model"]["hidden_dim"] == 16
    assert re.search(r"^seed: 3  # cli$", saved.read_text(), re.MULTILINE)
    train.main(["--training_config", str(saved), "--output_dir", str(tmp_path / "again")])
    assert same(tmp_path / "out", tmp_path / "again")
    train.main(["--training_config", str(saved), "--output_dir", str(tmp_path / "other"), "--seed", "4"])
    assert not same(tmp_path / "out", tmp_path / "other")


@pytest.mark.slow
def test_images_history_and_gradient_checkpointing(command, tmp_path):
    write_act_folder(tmp_path / "images", (8, 8), cameras={"top": (48, 64)})
    settings = ("dataset.cameras=[top]", "dataset.image_size=[32, 32]", "model.backbone=resnet10")
    settings += ("dataset.state_keys=[observations/qpos]", "history_images_length=2", "gradient_checkpointing=true")
    words = command(*settings, data=tmp_path / "images", max_steps=1, per_device_train_batch_size=2)
    model = train.main(words).model
    assert model.config.num_images == 2
    assert getattr(model, "is_activation_checkpointing", None) or model.is_gradient_checkpointing


# ---- bad input ----


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "flags", "key"),
    [
        ((), {"max_steps": 0}, "`max_steps: 0`"),
        ((), {"task_name": "sim_transfer_cub_state"}, "`sim_transfer_cube_state`"),
        ((), {"policy": "atc"}, "`act`"),
        ((), {"training_config": "nowhere.yaml"}, "nowhere.yaml"),
        ((), {"lora_enable": "true"}, "lora_enable"),
        (("model.action_dim=7",), {}, "action_dim"),
        (("dataset.path=/no/such/folder",), {}, "/no/such/folder"),
        (("dataloader_drop_last=true",), {"per_device_train_batch_size": 500}, "per_device_train_batch_size"),
        (("tf32=true",), {}, "tf32"),
        (("optimizer={name: SGD, momentun: 1}",), {}, "`momentum`"),
        (("optimizer.bogus=1",), {}, "bogus"),
        (("scheduler.bogus=1",), {}, "bogus"),
        ((), {"optim": "LBFGS"}, "LBFGS"),
        (("param_groups=[{pattern: nowhere, lr: 1}]",), {}, "param_groups"),
        (("dataset.eval_fraction=0",), {"do_eval": "true"}, "eval_fraction"),
    ],
)
def test_refused_before_anything_is_written(command, tmp_path, capsys, settings, flags, key):
    if key == "tf32" and torch.cuda.is_available():
        pytest.skip("this GPU may support tf32")
    assert key in error_line(capsys, train.main, command(*settings, **flags))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_damaged_data(command, episodes, tmp_path, capsys):
    """More kinds of damage are tested in tests/data/."""
    (tmp_path / "empty").mkdir()
    for data in (tmp_path / "none", tmp_path / "empty", episodes / "episode_0.hdf5"):
        assert str(data) in error_line(capsys, train.main, command(data=data))
    with h5py.File(episodes / "episode_2.hdf5", "a") as file:
        file["action"][7, 3] = np.nan
    line = error_line(capsys, train.main, command())
    assert "episode_2.hdf5" in line and "step 7" in line
    write_act_episode(episodes / "episode_1.hdf5", dims=(14, 7))
    lines = error_lines(capsys, train.main, command())  # each bad file, and how to leave them out
    assert len(lines) == 3 and re.search(r"episode_\d.hdf5.*episode_1.hdf5", lines[0]) and "episode_2.hdf5" in lines[1]
    assert "[episode_1.hdf5, episode_2.hdf5]" in lines[2]
    assert not (tmp_path / "out").exists() and not (tmp_path / "none").exists()


@pytest.mark.slow
def test_a_folder_that_holds_a_run_is_refused(command, tmp_path, capsys):
    train.main(command(max_steps=4, save_strategy="steps", save_steps=2))
    before = sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "out").iterdir())
    line = error_line(capsys, train.main, command())
    assert "--resume_from_checkpoint auto" in line and "--output_dir" in line
    train.main(command(out="other"))
    resume = {"resume_from_checkpoint": tmp_path / "out/checkpoint-2"}
    assert str(tmp_path / "other") in error_line(capsys, train.main, command(out="other", **resume))
    train.main(command(out="third", **resume))
    assert (tmp_path / "third" / "model.safetensors").exists()
    assert sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "out").iterdir()) == before


@pytest.mark.slow
def test_a_folder_that_holds_only_run_yaml_is_taken(command, tmp_path):
    """A start that failed leaves one."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.yaml").write_text("seed: 1\n")
    train.main(command(max_steps=1))


@pytest.mark.slow
def test_an_output_dir_that_cannot_be_made(command, capsys):
    words = command()
    words[1] = "/proc/no_such_process/out"
    assert "/proc/no_such_process/out" in error_line(capsys, train.main, words)


@pytest.mark.slow
def test_a_mistake_in_a_file_as_a_whole_process(in_root, tmp_path):
    """Exit code, one line on stderr, no traceback, nothing on stdout."""
    (tmp_path / "bad.yaml").write_text("learning_rate: 0.1\nlerning_rate: 0.1\n")
    words = ["train.py", "--training_config", str(tmp_path / "bad.yaml"), "--output_dir", str(tmp_path / "o")]
    done = subprocess.run([sys.executable, *words], cwd=in_root, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(r"error: .*`lerning_rate` at .*bad.yaml:2:1; .*`learning_rate`.*\n", done.stderr)


def test_hyper_arguments_is_importable_from_train():
    assert train.HyperArguments is HyperArguments
