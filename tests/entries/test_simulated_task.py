"""The three entry points on a simulated task: record, train, score."""

import json
import math
import os
import shutil
import subprocess
import sys

import pytest
from fresh_interpreter import ROOT
from run_results import error_line

import eval as evaluation
import prepare

SMALL = ["model.hidden_dim=32", "model.num_heads=2", "model.feedforward_dim=32", "model.encoder_layers=1"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


def run(words, home, check=0, **environment):
    variables = {**os.environ, "KEEL_HOME": str(home), **environment}
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == check, done.stdout + done.stderr
    return done


def can_render():
    code = "from sim.aloha import Config, make\n"
    code += "make(Config(task='transfer_cube', cameras=['top'], episode_steps=1)).reset(0)"
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def trained(home):
    """A small ACT after five steps on three recorded episodes: it can be scored."""
    run(["prepare.py", "--task_name", "sim_transfer_cube_state", "--num_episodes", "3"], home)
    words = training("act_state", home / "out", steps=5)
    run([*words, "--eval_steps", "5", "--set", *SMALL, "dataset.eval_fraction=0.4"], home)
    return home / "out"


def training(config, out, steps):
    words = ["train.py", "--training_config", f"configs/training/{config}.yaml", "--output_dir", out]
    words += ["--max_steps", steps, "--save_steps", steps, "--warmup_steps", "1", "--report_to", "none"]
    return words


@pytest.mark.slow
def test_recording_extends_and_is_found_by_training(home, trained):
    folder = home / "datasets" / "sim_transfer_cube_state"
    before = (folder / "episode_0.hdf5").stat().st_mtime_ns
    done = run(["prepare.py", "--task_name", "sim_transfer_cube_state", "--num_episodes", "4"], home)
    assert str(folder) in done.stdout
    assert (folder / "episode_0.hdf5").stat().st_mtime_ns == before
    assert len(list(folder.glob("episode_*.hdf5"))) == 4


@pytest.mark.slow
def test_an_interrupted_recording_is_completed_before_training(tmp_path):
    from loader.command_line.parser import HyperArguments
    from loader.resolve.resolver import resolve
    from prepare import record_episodes, with_prepared_data

    run_config = resolve(HyperArguments(), [f"cache_dir={tmp_path}"])
    folder = record_episodes(run_config, 3, seed=5, num_workers=1)
    content = (folder / "episode_2.hdf5").read_bytes()
    (folder / "episode_2.hdf5").unlink()
    prepared = with_prepared_data(run_config)
    assert prepared.dataset.config.path == str(folder)
    assert len((folder / "episode_2.hdf5").read_bytes()) == len(content)


@pytest.mark.slow
def test_a_recording_made_with_another_environment_is_refused(home, trained):
    words = ["train.py", "--output_dir", home / "other", "--set", "env.episode_steps=300"]
    done = run(words, home, check=2)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "episode_steps 400, not 300" in line
    assert not (home / "other").exists()


@pytest.mark.slow
def test_eval_scores_a_checkpoint_alone(home, trained, tmp_path):
    """Without the recordings, and although the folder has moved."""
    moved = tmp_path / "elsewhere"
    trained.joinpath("checkpoint-5").rename(moved)
    try:
        words = ["eval.py", "--checkpoint", moved, "--episodes", "3", "--seed", "1000", "--json", tmp_path / "s.json"]
        done = run([*words, "--num_workers", "2"], tmp_path / "empty_home")
        alone = run([*words, "--num_workers", "1"], tmp_path / "empty_home")
    finally:
        moved.rename(trained / "checkpoint-5")
    scores = json.loads(done.stdout.splitlines()[-1])
    assert scores == json.loads((tmp_path / "s.json").read_text())
    assert scores == json.loads(alone.stdout.splitlines()[-1])  # the number of workers changes nothing
    assert {"success_rate", "strict_success_rate", "episodes", "mean_steps_to_success"} <= scores.keys()
    wins, n, z = scores["success_rate"] * 3, 3, 1.959964
    centre, half = wins + z * z / 2, z * math.sqrt(wins * (n - wins) / n + z * z / 4)
    assert scores["success_low"] == pytest.approx((centre - half) / (n + z * z), abs=1e-6)
    assert scores["success_high"] == pytest.approx((centre + half) / (n + z * z), abs=1e-6)


@pytest.mark.slow
def test_eval_films(home, trained, tmp_path):
    if not can_render():
        pytest.skip("nothing here can render off-screen")
    words = ["eval.py", "--checkpoint", trained, "--episodes", "1", "--video", "--video_dir", tmp_path]
    run(words, home)
    names = {path.suffix for path in tmp_path.iterdir()}
    assert ".png" in names and names & {".mp4", ".gif"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.yaml", None),
        ("statistics.json", None),
        ("statistics.json", b'{"state": '),
        ("statistics.json", b'{"state": {}}'),
        ("model.safetensors", None),
        ("model.safetensors", b"\x00" * 1000),
    ],
)
def test_a_damaged_checkpoint_is_one_line(home, trained, tmp_path, monkeypatch, capsys, name, content):
    monkeypatch.setenv("KEEL_HOME", str(home))
    shutil.copytree(trained / "checkpoint-5", tmp_path / "copy")
    (tmp_path / "copy" / name).unlink()
    if content is not None:
        (tmp_path / "copy" / name).write_bytes(content)
    words = ["--checkpoint", str(tmp_path / "copy"), "--episodes", "1", "--num_workers", "1"]
    line = error_line(capsys, evaluation.main, words)
    assert name in line or name == "model.safetensors" and "weights" in line


@pytest.mark.slow
def test_eval_refuses_before_the_first_episode(home, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KEEL_HOME", str(home))
    (tmp_path / "file").write_text("")
    words = ["--checkpoint", str(trained), "--episodes", "1"]
    for flag, value in (("device", "foo"), ("video_dir", tmp_path / "file"), ("json", tmp_path / "none" / "x.json")):
        assert str(value) in error_line(capsys, evaluation.main, [*words, f"--{flag}", str(value)])


@pytest.mark.slow
def test_every_step_of_the_vision_recipe_runs(tmp_path):
    """Record with the camera, train and score: the recipe for a GPU with a small network and small images."""
    if not can_render():
        pytest.skip("nothing here can render off-screen")
    home, out = tmp_path / "home", tmp_path / "out"
    short = ["env.episode_steps=400", "env.image_height=48", "env.image_width=64"]
    run(["prepare.py", "--task_name", "sim_transfer_cube_scripted", "--num_episodes", "2", "--set", *short], home)
    words = [*training("act_vision_scratch", out, steps=3), "--per_device_train_batch_size", "4"]
    words += ["--dataloader_num_workers", "1", "--no_do_eval", "--logging_steps", "1"]
    small = [*SMALL, "model.backbone=resnet10", "dataset.image_size=[48, 64]", "dataset.max_episodes=2"]
    run([*words, "--set", *short, *small], home)
    done = run(["eval.py", "--checkpoint", out, "--episodes", "1", "--num_workers", "1"], home)
    assert json.loads(done.stdout.splitlines()[-1])["episodes"] == 1


def test_eval_names_what_is_missing(tmp_path, capsys):
    (tmp_path / "checkpoint-7").mkdir()
    for words, keys in (
        ([], ("--checkpoint",)),
        (["--checkpoint", str(tmp_path / "none")], (str(tmp_path / "none"),)),
        (["--checkpoint", str(tmp_path)], ("run.yaml", "checkpoint-7")),
    ):
        line = error_line(capsys, evaluation.main, words)
        assert all(key in line for key in keys), line


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["--task_name", "sim_transfer_cub_state"], "`sim_transfer_cube_state`"),
        (["--num_episodes", "-1"], "num_episodes"),
        (["--set", "dataset.path=/some/where"], "dataset.path"),
    ],
)
def test_prepare_refuses(in_root, capsys, words, key):
    assert key in error_line(capsys, prepare.main, words)
