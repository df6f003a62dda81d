"""Every YAML example, command and Python snippet of the specifications, as printed there."""

import os
import re
import shlex
from pathlib import Path

import pytest
import yaml
from documents import SHARED, blocks, checked, filled
from fresh_interpreter import python
from text_sets import SMALL, run, write_set
from track_files import write_stack

from configs.training.loader import create_training_arguments, load_training_config
from loader.command_line.parser import HyperArguments, parse_flags
from loader.resolve.resolver import resolve

DOCUMENTS = sorted((SHARED / "specs").glob("*.txt")) if SHARED.is_dir() else []


def texts_of(*languages):
    """Blocks in these languages of all documents, as pytest parameters."""
    return [
        pytest.param(text, id=f"{path.name[:3]}-{number}")
        for path in DOCUMENTS
        for number, (language, text) in enumerate(blocks(path))
        if language in languages
    ]


def words_of(command):
    return shlex.split(command.replace("\\\n", " "))


EXAMPLES, COMMANDS = texts_of("yaml", "yml"), texts_of("bash", "sh", "shell")
OF_TRACKING = "dreem train"  # these words stand for `python train.py --task_name tracking`
OF_TEXT = ("python train.py --dataset", "python train.py --init_from", "python train.py --training_mode")


def of_text(command):
    return " ".join(words_of(command)).startswith(OF_TEXT)


def test_the_documents_are_found(shared):
    assert len(EXAMPLES) >= 4 and len(COMMANDS) >= 6
    assert sum(of_text(command.values[0]) for command in COMMANDS) >= 5


@pytest.mark.slow
@pytest.mark.parametrize("text", EXAMPLES)
def test_a_yaml_example_passes_the_check(text, tmp_path, in_root):
    """Sections whose workload does not exist yet are reported as such; the rest passes."""
    pytest.importorskip("wandb")
    example = filled(text)
    path = tmp_path / "example.yaml"
    if set(example) == {"augmentations"}:  # a part of a tracking data set, shown by itself
        example = {"dataset": {"train_dataset": {"dir": {}, **example}}}
    is_tracking = "train_dataset" in example.get("dataset", {})
    if is_tracking:
        complete_tracking(example, tmp_path)
    path.write_text(yaml.safe_dump(example), encoding="utf-8")
    example.setdefault("output_dir", None)
    code, lines = checked("--training_config", str(path), "--output_dir", str(tmp_path / "out"))
    assert all(line.startswith("error: not available yet: ") for line in lines), lines
    assert code == (2 if lines else 0) and not (is_tracking and lines)
    rest = {key: value for key, value in example.items() if key not in ("model", "dataset", "loss", "output_dir")}
    path.write_text(yaml.safe_dump(rest), encoding="utf-8")
    eval_set = ["--set", "dataset.eval_fraction=0.1"] if "early_stopping" in text or "checkpointing" in text else []
    assert checked("--training_config", str(path), "--output_dir", str(tmp_path / "out"), *eval_set) == (0, [])


def complete_tracking(example, folder):
    """Fill in where the data is; «...» stands for the same keys as in train_dataset, without augmentations."""
    write_stack(folder / "videos", "video", size=(48, 64))
    sections = example["dataset"]
    sections["train_dataset"]["dir"]["path"] = str(folder / "videos")
    if "val_dataset" in sections:
        sections["val_dataset"] = {k: v for k, v in sections["train_dataset"].items() if k != "augmentations"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_passes_the_check(command, tmp_path, in_root):
    words = words_of(command)
    if of_text(command):
        return
    if command.startswith(OF_TRACKING):
        for folder in ("train", "val"):
            write_stack(tmp_path / "data" / folder, "video", frames=40, size=(160, 160))
        line = command.replace(OF_TRACKING, "python train.py --task_name tracking").replace(
            "./data", f"{tmp_path}/data"
        )
        words = [word for word in words_of(line) if word.strip()]
    assert words[:2] == ["python", "train.py"]
    if "configs/training/my_config.yaml" in command:  # the reader's own file, shown beside the command
        mine = tmp_path / "my_config.yaml"
        mine.write_text('output_dir: "ckpt/my_training"\nmax_steps: 2000\n', encoding="utf-8")
        words = [str(mine) if word == "configs/training/my_config.yaml" else word for word in words]
    assert checked(*words[2:]) == (0, [])


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command in COMMANDS if of_text(command.values[0])])
def test_a_command_on_text_passes_the_check(command, tmp_path, monkeypatch):
    """Placeholders are replaced by names of data sets; for a resumed run there is an earlier one."""
    sets, names = Path(os.environ["KEEL_HOME"]) / "datasets", iter("abcdef")
    monkeypatch.chdir(tmp_path)

    def filled_in(match):
        if "dataset" not in match[0]:
            return "my_run"
        name = next(names)
        write_set(sets / name)
        return name

    line = re.sub("<[a-z_0-9]+>", filled_in, " ".join(command.replace("\\\n", " ").split()))
    assert "<" not in line
    if "resume" in line:
        write_set(sets / "a")
        run(f"--dataset a {SMALL} --out_dir out/my_run")
    assert checked(*shlex.split(line)[2:]) == (0, [])


# ---- document 001 ----


@pytest.fixture
def document(shared):
    """`document(language)`: the blocks of document 001 in this language."""
    (path,) = (shared / "specs").glob("001*")
    return lambda language: [text for kind, text in blocks(path) if kind == language]


@pytest.mark.slow
def test_the_python_snippet_runs_verbatim(document):
    (snippet,) = document("python")
    check = "\nassert training_args.learning_rate == hyper_args.learning_rate\nassert config['lora_enable'] is False\n"
    check += "assert type(training_args).__module__ == 'transformers.training_args'\n"
    python(snippet + check)


def test_flags_take_precedence_and_the_custom_configuration_is_read(document, in_root, tmp_path):
    run = resolve(parse_flags(words_of(document("bash")[1])[2:])[0])
    assert (run.hyper.output_dir, run.hyper.learning_rate, run.hyper.max_steps) == ("my_output", 0.001, 1000)
    assert run.hyper.per_device_train_batch_size == 16
    custom = tmp_path / "my_config.yaml"
    custom.write_text(document("yaml")[0])
    run = resolve(training_config=custom)
    assert (run.hyper.output_dir, run.hyper.learning_rate, run.hyper.max_steps) == ("ckpt/my_training", 0.0005, 2000)


def test_warmup_ratio_and_logging_dir_work_although_transformers_dropped_them(in_root, tmp_path):
    hyper = HyperArguments(warmup_ratio=0.1, logging_dir=str(tmp_path / "tb"), output_dir=str(tmp_path / "o"))
    args = create_training_arguments("configs/training/default.yaml", hyper)
    assert args.get_warmup_steps(1000) == 100 and args.get_warmup_steps(995) == 100  # rounded up
    directory = getattr(args, "logging_dir", None) or os.environ["TENSORBOARD_LOGGING_DIR"]
    assert directory == str(tmp_path / "tb")
    every_step = create_training_arguments("configs/training/default.yaml", HyperArguments(warmup_ratio=1.0))
    assert every_step.get_warmup_steps(1000) == 1000
    assert "TENSORBOARD_LOGGING_DIR" not in os.environ or hasattr(args, "logging_dir")


def test_yaml_values_reach_training_arguments_and_a_flag_takes_precedence(in_root, tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("learning_rate: 1e-4\nmax_steps: 7\ngradient_accumulation_steps: 3\nlora_r: 64\n")
    config = load_training_config(path)
    assert config["learning_rate"] == 1e-4 and config.origins["learning_rate"].endswith("x.yaml:1")
    with open(path, "a") as file:
        file.write("torch_compile: true\ngradient_checkpointing: true\nbf16: true\nddp_timeout: 60\n")
    args = create_training_arguments(path, HyperArguments(learning_rate=5e-5))
    assert args.torch_compile and args.bf16 and args.ddp_timeout == 60
    assert getattr(args, "activation_checkpointing", None) or args.gradient_checkpointing
    assert (args.learning_rate, args.max_steps, args.gradient_accumulation_steps) == (5e-5, 7, 3)
