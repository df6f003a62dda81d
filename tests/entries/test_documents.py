"""Every YAML example and every command that the documents print, as they print it."""

import os
import re
import shlex
from pathlib import Path

import pytest
import yaml
from documents import SHARED, blocks, checked, filled
from text_sets import SMALL, run, write_set

DOCUMENTS = sorted((SHARED / "specs").glob("*.txt")) if SHARED.is_dir() else []
EXAMPLES = [
    pytest.param(text, id=f"{path.name[:3]}-{number}")
    for path in DOCUMENTS
    for number, (language, text) in enumerate(blocks(path))
    if language in ("yaml", "yml")
]
COMMANDS = [
    pytest.param(command, id=f"{path.name[:3]}-{number}")
    for path in DOCUMENTS
    for number, command in enumerate(
        " ".join(text.replace("\\\n", " ").split())
        for language, text in blocks(path)
        if language in ("bash", "sh", "shell")
    )
]
# Commands of a workload that is not there yet begin with these words.
LATER = ("dreem train",)
OF_TEXT = ("python train.py --dataset", "python train.py --init_from", "python train.py --training_mode")


def test_the_documents_are_found(shared):
    assert len(EXAMPLES) >= 4 and len(COMMANDS) >= 6


@pytest.mark.parametrize("text", EXAMPLES)
def test_a_yaml_example_passes_the_check(text, tmp_path, in_root):
    """All of it, but for what says itself that its workload is not there yet."""
    pytest.importorskip("wandb")
    example = filled(text)
    path = tmp_path / "example.yaml"
    if set(example) == {"augmentations"}:  # a part of a tracking data set, shown by itself
        example = {"dataset": {"train_dataset": example}}
    path.write_text(yaml.safe_dump(example), encoding="utf-8")
    example.setdefault("output_dir", None)
    code, lines = checked("--training_config", str(path), "--output_dir", str(tmp_path / "out"))
    assert all(line.startswith("error: not available yet: ") for line in lines), lines
    workload = {"model", "dataset", "loss"} & set(example)
    assert code == (2 if workload else 0)
    rest = {key: value for key, value in example.items() if key not in ("model", "dataset", "loss", "output_dir")}
    path.write_text(yaml.safe_dump(rest), encoding="utf-8")
    eval_set = ["--set", "dataset.eval_fraction=0.1"] if "early_stopping" in text or "checkpointing" in text else []
    assert checked("--training_config", str(path), "--output_dir", str(tmp_path / "out"), *eval_set) == (0, [])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_passes_the_check(command, tmp_path, monkeypatch, in_root):
    words = shlex.split(command)
    if command.startswith(LATER + OF_TEXT):
        return
    assert words[:2] == ["python", "train.py"]
    if "configs/training/my_config.yaml" in command:  # the reader's own file, shown beside the command
        mine = tmp_path / "my_config.yaml"
        mine.write_text('output_dir: "ckpt/my_training"\nmax_steps: 2000\n', encoding="utf-8")
        words = [str(mine) if word == "configs/training/my_config.yaml" else word for word in words]
    assert checked(*words[2:]) == (0, [])


@pytest.mark.parametrize("command", [each for each in COMMANDS if each.values[0].startswith(OF_TEXT)])
def test_a_command_on_text_passes_the_check(command, tmp_path, monkeypatch):
    """With data sets of the names it leaves open, and for a resumed run one to go on with."""
    sets, names = Path(os.environ["KEEL_HOME"]) / "datasets", iter("abcdef")
    monkeypatch.chdir(tmp_path)

    def filled_in(match):
        if "dataset" not in match[0]:
            return "my_run"
        name = next(names)
        write_set(sets / name)
        return name

    line = re.sub("<[a-z_0-9]+>", filled_in, command)
    assert "<" not in line
    if "resume" in line:
        write_set(sets / "a")
        run(f"--dataset a {SMALL} --out_dir out/my_run")
    assert checked(*shlex.split(line)[2:]) == (0, [])


def test_all_commands_on_text_are_there(shared):
    assert sum(command.values[0].startswith(OF_TEXT) for command in COMMANDS) >= 5
