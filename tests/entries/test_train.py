"""`train.py` from end to end on small synthetic data, and every bad input: one line, exit 2, nothing written."""

import json
import os
import re
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
import yaml
from demonstration_files import write_act_episode
from safetensors.torch import load_file

import train
from loader.command_line.parser import HyperArguments
from loader.resolve.resolver import read_saved

SMALL = ["model.hidden_dim=16", "model.num_heads=2", "model.feedforward_dim=16", "model.cvae_layers=1"]
SMALL += ["model.encoder_layers=1", "dataset.chunk_size=5", "model.dropout=0.1"]


@pytest.fixture
def episodes(tmp_path):
    folder = tmp_path / "episodes"
    folder.mkdir()
    for index in range(4):
        write_act_episode(folder / f"episode_{index}.hdf5", steps=20, seed=index)
    return folder


@pytest.fixture
def command(in_root, tmp_path, episodes):
    """Flags of a small run; further settings are appended."""

    def build(*settings, out="out", data=None, **flags):
        words = ["--output_dir", str(tmp_path / out), "--report_to", "none", "--logging_steps", "2"]
        for name, value in {"max_steps": 4, "save_strategy": "no", **flags}.items():
            words += [f"--{name}", *(str(each) for each in (value if isinstance(value, list) else [value]))]
        return [*words, "--set", f"dataset.path={data or episodes}", *SMALL, *settings]

    return build


def log(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_a_self_contained_folder(command, tmp_path, capfd):
    trainer = train.main(command(eval_steps=2, report_to="tensorboard"))
    out = tmp_path / "out"
    assert {"run.yaml", "metrics.jsonl", "statistics.json", "config.json", "model.safetensors", "runs"} <= set(
        os.listdir(out)
    )
    assert [line["step"] for line in log(out) if "loss" in line] == [2, 4]
    assert all(
        {"loss_action", "loss_kl", "grad_norm", "learning_rate"} <= line.keys() for line in log(out) if "loss" in line
    )
    assert [line["step"] for line in log(out) if "eval_loss" in line] == [2, 4]
    shown = capfd.readouterr()
    assert "4 episodes" in shown.out and "step 4/4" in shown.err and "Warning" not in shown.err
    again = trainer.model.__class__.from_pretrained(out)
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value.cpu(), again.state_dict()[name]), name


def test_run_yaml_repeats_the_run(command, tmp_path):
    train.main(command(seed=3))
    saved = tmp_path / "out" / "run.yaml"
    assert read_saved(saved).hyper.seed == 3
    assert re.search(r"^seed: 3  # cli$", saved.read_text(), re.MULTILINE)
    train.main(["--training_config", str(saved), "--output_dir", str(tmp_path / "again")])
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert yaml.safe_load(saved.read_text())["model"]["hidden_dim"] == 16


def test_the_seed_seeds_everything(command, tmp_path):
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        train.main(command(out=out, seed=seed))
    a, b, c = (load_file(tmp_path / name / "model.safetensors") for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)


def test_a_resumed_run_equals_an_uninterrupted_one(command, tmp_path):
    """Stopped in the middle of an epoch; the checkpoint decides where it goes on, the flags stay the same."""
    train.main(command(out="whole", max_steps=8, save_strategy="steps", save_steps=3))
    train.main(command(out="parts", max_steps=8, save_strategy="steps", save_steps=3))
    for name in ("checkpoint-6", "model.safetensors"):
        subprocess.run(["rm", "-r", str(tmp_path / "parts" / name)], check=True)
    train.main(command(out="parts", max_steps=8, save_strategy="steps", save_steps=3, resume_from_checkpoint="auto"))
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert [line["step"] for line in log(tmp_path / "parts") if "loss" in line] == [2, 4, 6, 8]


def test_resume_auto_starts_fresh_where_there_is_nothing(command, tmp_path):
    train.main(command(resume_from_checkpoint="auto"))
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_settings_reach_the_optimizer_and_the_parts(command):
    trainer = train.main(
        command(
            "optimizer={name: SGD, momentum: 0.5}",
            "param_groups=[{pattern: encoder, lr_factor: 0.1}]",
            learning_rate=0.1,
        )
    )
    rates = {group["initial_lr"]: len(group["params"]) for group in trainer.optimizer.param_groups}
    assert set(rates) == {0.1, 0.1 * 0.1} and trainer.optimizer.param_groups[0]["momentum"] == 0.5


def test_policies_are_exchangeable(command, tmp_path):
    words = [word for word in command(policy="mlp") if not re.match(r"model\.(num_heads|feed|cvae|encoder)", word)]
    train.main(words)
    assert "mlp" in (tmp_path / "out" / "config.json").read_text()


def test_images_history_and_gradient_checkpointing(command, tmp_path, in_root):
    folder = tmp_path / "seeing"
    folder.mkdir()
    for index in range(2):
        write_act_episode(folder / f"episode_{index}.hdf5", steps=8, cameras={"top": (48, 64)}, seed=index)
    settings = ("dataset.cameras=[top]", "dataset.image_size=[32, 32]", "model.backbone=resnet10")
    settings += ("dataset.state_keys=[observations/qpos]", "history_images_length=2", "gradient_checkpointing=true")
    trainer = train.main(command(*settings, data=folder, max_steps=1, per_device_train_batch_size=2))
    assert (
        trainer.model.config.num_images == 2
        and getattr(trainer.model, "is_activation_checkpointing", None)
        or trainer.model.is_gradient_checkpointing
    )


def test_trainer_settings_reach_training_arguments(command):
    trainer = train.main(command("gradient_accumulation_steps=2", "bf16=true", "max_grad_norm=0.3", max_steps=1))
    assert (trainer.args.gradient_accumulation_steps, trainer.args.bf16, trainer.args.max_grad_norm) == (2, True, 0.3)
    assert trainer.accelerator.mixed_precision == "bf16"


# ---- bad input ----


def refused(words, capsys):
    """The error lines of a refused command."""
    with pytest.raises(SystemExit) as left:
        train.main(words)
    shown = capsys.readouterr()
    assert left.value.code == 2, shown
    lines = [line for line in shown.err.splitlines() if line]
    assert all(line.startswith("error: ") for line in lines), shown.err
    return lines


@pytest.mark.parametrize(
    ("settings", "flags", "says"),
    [
        ((), {"max_steps": 0}, "`max_steps: 0`"),
        ((), {"learning_rate": -1}, "`learning_rate: -1.0`"),
        ((), {"task_name": "sim_transfer_cub_state"}, "did you mean `sim_transfer_cube_state`"),
        ((), {"policy": "atc"}, "did you mean `act`"),
        ((), {"training_config": "nowhere.yaml"}, "nowhere.yaml does not exist"),
        ((), {"lora_enable": "true"}, "is a process parameter"),
        (("model.action_dim=7",), {}, "contradicts the data"),
        (("dataset.path=/no/such/folder",), {}, "/no/such/folder does not exist"),
        (("bits=5",), {}, "must be one of 4, 8, 16"),
        (("dataloader_drop_last=true",), {"per_device_train_batch_size": 500}, "is larger than the data"),
        ((), {"optim": "Adamw"}, "did you mean `AdamW`"),
        (("tf32=true",), {}, "tf32"),
        (("optimizer={name: SGD, momentun: 1}",), {}, "did you mean `momentum`"),
        (("optimizer.bogus=1",), {}, "bogus"),
        (("scheduler.bogus=1",), {}, "bogus"),
        ((), {"optim": "LBFGS"}, "LBFGS"),
        (("param_groups=[{pattern: nowhere, lr: 1}]",), {}, "matches no trainable parameter; parts of this model"),
        (("dataset.eval_fraction=0",), {"do_eval": "true"}, "the data holds nothing out"),
    ],
)
def test_refused_before_anything_is_written(command, tmp_path, capsys, settings, flags, says):
    if says == "tf32" and torch.cuda.is_available():
        pytest.skip("this GPU may well do tf32")
    lines = refused(command(*settings, **flags), capsys)
    assert len(lines) == 1 and says in lines[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("nothing there", "no such|does not exist"),
        ("empty", "holds no episode"),
        ("a file", "is a file"),
        ("truncated", r"episode_1.hdf5"),
        ("other dims", r"episode_\d.hdf5.*episode_\d.hdf5"),
        ("nan", r"episode_1.hdf5.*(step|at) 7"),
    ],
)
def test_damaged_data(command, episodes, tmp_path, capsys, damage, says):
    data = episodes
    if damage == "nothing there":
        data = tmp_path / "none"
    elif damage == "empty":
        data = tmp_path / "empty"
        data.mkdir()
    elif damage == "a file":
        data = episodes / "episode_0.hdf5"
    elif damage == "truncated":
        whole = (episodes / "episode_1.hdf5").read_bytes()
        (episodes / "episode_1.hdf5").write_bytes(whole[: len(whole) // 2])
    elif damage == "other dims":
        write_act_episode(episodes / "episode_1.hdf5", dims=(14, 7))
    else:
        with h5py.File(episodes / "episode_1.hdf5", "a") as file:
            file["action"][7, 3] = np.nan
    lines = refused(command(data=data), capsys)
    assert len(lines) == 1 and re.search(says, lines[0]), lines
    assert not (tmp_path / "out").exists() and not (tmp_path / "none").exists()


def test_a_used_output_dir_is_refused_with_the_two_ways_out(command, tmp_path, capsys):
    train.main(command())
    before = sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "out").iterdir())
    capsys.readouterr()
    (line,) = refused(command(), capsys)
    assert "--resume_from_checkpoint auto" in line and "another --output_dir" in line
    assert sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "out").iterdir()) == before


def test_an_output_dir_that_cannot_be_made(command, capsys):
    words = command()
    words[1] = "/proc/no_such_process/out"
    (line,) = refused(words, capsys)
    assert "/proc/no_such_process/out" in line


def test_a_broken_file_named_on_a_real_command_line(in_root, tmp_path):
    """The whole process: exit code, one line on stderr, no traceback, nothing on stdout."""
    (tmp_path / "bad.yaml").write_text("learning_rate: 0.1\nlerning_rate: 0.1\n")
    words = [
        sys.executable,
        "train.py",
        "--training_config",
        str(tmp_path / "bad.yaml"),
        "--output_dir",
        str(tmp_path / "o"),
    ]
    done = subprocess.run(words, cwd=in_root, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(
        r"error: unknown key `lerning_rate` at .*bad.yaml:2:1; did you mean `learning_rate`\?\n", done.stderr
    )


def test_hyper_arguments_is_importable_from_train():
    assert train.HyperArguments is HyperArguments


# ---- resuming ----


def saved_twice(command, tmp_path, out="out", **flags):
    """A finished run of 6 steps with checkpoint-3 and checkpoint-6, and what resuming it with `auto` takes."""
    flags = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, **flags}
    train.main(command(out=out, **flags))
    return command(out=out, **flags, resume_from_checkpoint="auto"), tmp_path / out


TORN = [
    "optimizer.json",
    "optimizer.safetensors",
    "scheduler.json",
    "rng-0.json",
    "model.safetensors",
    "trainer_state.json",
]


@pytest.mark.slow
@pytest.mark.parametrize("torn", TORN)
@pytest.mark.parametrize("how", ["gone", "cut"])
def test_auto_takes_the_newest_whole_checkpoint(command, tmp_path, capsys, torn, how):
    words, out = saved_twice(command, tmp_path)
    whole = load_file(out / "model.safetensors")
    path = out / "checkpoint-6" / torn
    content = path.read_bytes()
    path.unlink()
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    capsys.readouterr()
    train.main(words)
    assert re.search(r"^skipping checkpoint-6: it has", capsys.readouterr().out, re.MULTILINE)
    resumed = load_file(out / "model.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.slow
def test_a_finished_run_is_not_trained_further(command, tmp_path, capsys):
    words, out = saved_twice(command, tmp_path, lr_scheduler_type="constant")
    before, lines = load_file(out / "model.safetensors"), log(out)
    (out / "model.safetensors").unlink()  # killed between the last checkpoint and the final save
    train.main(words)
    after = load_file(out / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before) and log(out) == lines
    assert "nothing is left to train" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "flags", "says"),
    [
        ((), {"adam_beta2": 0.5}, r"`adam_beta2: 0.5` on the command line, and checkpoint-3 was trained with 0.999"),
        ((), {"max_steps": 9}, "`max_steps: 9` on the command line"),
        (("model.kl_weight=3",), {}, "`model.kl_weight: 3.0`"),
        ((), {"optim": "SGD"}, "`optim: SGD`"),
        (("gradient_accumulation_steps=2",), {}, "`gradient_accumulation_steps: 2` in --set: a batch of 8"),
    ],
)
def test_a_run_resumes_as_it_was_begun(command, tmp_path, capsys, settings, flags, says):
    _, out = saved_twice(command, tmp_path)
    subprocess.run(["rm", "-r", str(out / "checkpoint-6")], check=True)
    capsys.readouterr()
    changed = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "resume_from_checkpoint": "auto", **flags}
    (line,) = refused(command(*settings, **changed), capsys)
    assert re.search(says, line), line


def test_what_does_not_change_the_course_may_change_on_resume(command, tmp_path):
    _, out = saved_twice(command, tmp_path)
    subprocess.run(["rm", "-r", str(out / "checkpoint-6")], check=True)
    train.main(command(max_steps=6, per_device_eval_batch_size=3, resume_from_checkpoint="auto"))
    assert [line["step"] for line in log(out) if "loss" in line] == [2, 4, 6]


@pytest.mark.slow
def test_a_checkpoint_of_another_run_does_not_overwrite_this_one(command, tmp_path, capsys):
    saved_twice(command, tmp_path, out="one")
    saved_twice(command, tmp_path, out="two")
    capsys.readouterr()
    flags = {"max_steps": 6, "resume_from_checkpoint": str(tmp_path / "one" / "checkpoint-3")}
    assert "already holds a run" in refused(command(out="two", **flags), capsys)[0]
    train.main(command(out="three", **flags))
    assert (tmp_path / "three" / "model.safetensors").exists()


def test_a_start_that_failed_does_not_use_up_its_folder(command, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.yaml").write_text("seed: 1\n")
    train.main(command())


def test_classes_with_a_pair_for_eps(command):
    trainer = train.main(command(optim="Adafactor", learning_rate=0.01))
    assert type(trainer.optimizer.optimizer) is torch.optim.Adafactor
