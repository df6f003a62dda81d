"""Record, train, score: the three entries on a real task, as a user runs them."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
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
    """A small ACT, five steps on three recorded episodes: enough to be scored, not to succeed."""
    run(["prepare.py", "--task_name", "sim_transfer_cube_state", "--num_episodes", "3"], home)
    out = home / "out"
    words = [
        "train.py",
        "--training_config",
        "configs/training/act_state.yaml",
        "--output_dir",
        out,
        "--max_steps",
        "5",
    ]
    words += ["--warmup_steps", "1", "--report_to", "none", "--save_steps", "5", "--eval_steps", "5"]
    run([*words, "--set", *SMALL, "dataset.eval_fraction=0.4"], home)
    return out


@pytest.mark.slow
def test_recording_extends_and_is_found_by_training(home, trained):
    folder = home / "datasets" / "sim_transfer_cube_state"
    before = (folder / "episode_0.hdf5").stat().st_mtime_ns
    done = run(["prepare.py", "--task_name", "sim_transfer_cube_state", "--num_episodes", "4"], home)
    assert "recorded 1 episodes" in done.stdout and str(folder) in done.stdout
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
    assert re.fullmatch(r"error: .*was recorded with episode_steps 400, not 300.*\n", done.stderr)
    assert not (home / "other").exists()


@pytest.mark.slow
def test_eval_scores_a_checkpoint_alone(home, trained, tmp_path):
    """Needs the folder and the simulator only: the recordings are out of sight, the run's folder has moved."""
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
def test_curves(trained):
    run(["-m", "trainer.curves", trained], trained.parent)
    assert (trained / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("no run.yaml", "has no run.yaml"),
        ("no statistics", r"statistics.json cannot be read \(No such file"),
        ("broken statistics", r"statistics.json cannot be read \(not JSON"),
        ("missing statistics key", "statistics.json"),
        ("no weights", "model.safetensors|weights"),
        ("truncated weights", "weights are damaged"),
    ],
)
def test_a_damaged_checkpoint_is_one_line(home, trained, tmp_path, damage, says):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(trained / "checkpoint-5", copy)
    if damage == "no run.yaml":
        (copy / "run.yaml").unlink()
    elif damage == "no statistics":
        (copy / "statistics.json").unlink()
    elif damage == "broken statistics":
        (copy / "statistics.json").write_text('{"state": ')
    elif damage == "missing statistics key":
        content = json.loads((copy / "statistics.json").read_text())
        del content["action"]
        (copy / "statistics.json").write_text(json.dumps(content))
    else:
        content = (copy / "model.safetensors").read_bytes()
        (copy / "model.safetensors").unlink()
        if damage == "truncated weights":
            (copy / "model.safetensors").write_bytes(content[: len(content) // 2])
    done = run(["eval.py", "--checkpoint", copy, "--episodes", "1", "--num_workers", "1"], home, check=2)
    errors = [line for line in done.stderr.splitlines() if line]
    assert len(errors) == 1 and re.search(says, errors[0]) and errors[0].startswith("error: "), done.stderr


@pytest.mark.slow
def test_eval_refuses_before_it_rolls_out(home, trained, tmp_path):
    (tmp_path / "file").write_text("")
    words = ["eval.py", "--checkpoint", trained, "--episodes", "1"]
    for wrong in (["--device", "foo"], ["--video_dir", tmp_path / "file"], ["--json", tmp_path / "none" / "x.json"]):
        done = run([*words, *wrong], home, check=2)
        assert done.stdout == "" and done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr


@pytest.mark.slow
def test_every_step_of_the_vision_recipe_runs(tmp_path):
    """Record with the camera, train, score: the recipe for a GPU at a size a CPU can do in a minute."""
    if not can_render():
        pytest.skip("nothing here can render off-screen")
    home, out = tmp_path / "home", tmp_path / "out"
    short = ["env.episode_steps=400", "env.image_height=48", "env.image_width=64"]
    run(["prepare.py", "--task_name", "sim_transfer_cube_scripted", "--num_episodes", "2", "--set", *short], home)
    words = [
        "train.py",
        "--training_config",
        "configs/training/act_vision.yaml",
        "--output_dir",
        out,
        "--max_steps",
        "3",
    ]
    words += ["--per_device_train_batch_size", "4", "--warmup_steps", "1", "--report_to", "none", "--save_steps", "3"]
    words += ["--dataloader_num_workers", "1", "--no_do_eval", "--logging_steps", "1"]
    small = [*SMALL, "model.backbone=resnet10", "dataset.image_size=[48, 64]", "dataset.max_episodes=2"]
    run([*words, "--set", *short, *small], home)
    done = run(["eval.py", "--checkpoint", out, "--episodes", "1", "--num_workers", "1"], home)
    assert json.loads(done.stdout.splitlines()[-1])["episodes"] == 1


def test_eval_names_what_is_missing(tmp_path):
    assert "name the checkpoint" in run(["eval.py"], tmp_path, check=2).stderr
    assert "is not a folder" in run(["eval.py", "--checkpoint", tmp_path / "none"], tmp_path, check=2).stderr
    (tmp_path / "checkpoint-7").mkdir()
    done = run(["eval.py", "--checkpoint", tmp_path], tmp_path, check=2)
    assert "has no run.yaml" in done.stderr and "checkpoint-7" in done.stderr


@pytest.mark.slow
def test_prepare_refuses(tmp_path):
    done = run(["prepare.py", "--task_name", "sim_transfer_cub_state"], tmp_path, check=2)
    assert "did you mean `sim_transfer_cube_state`" in done.stderr
    done = run(["prepare.py", "--num_episodes", "-1"], tmp_path, check=2)
    assert "must be at least 1" in done.stderr
    done = run(["prepare.py", "--set", "dataset.path=/some/where"], tmp_path, check=2)
    assert "names data of its own" in done.stderr
