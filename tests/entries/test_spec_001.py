"""The document that Keel's configuration follows: its Python, its shell commands and its YAML, as they are printed."""

import re
import shlex
import subprocess
import sys

import pytest

FENCE = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)


@pytest.fixture
def document(shared):
    return next((shared / "specs").glob("001*")).read_text()


def blocks(document, language):
    return [body for kind, body in FENCE.findall(document) if kind == language]


@pytest.mark.slow
def test_the_python_snippet_runs_verbatim(document, in_root):
    (snippet,) = blocks(document, "python")
    check = "\nassert training_args.learning_rate == hyper_args.learning_rate\nassert config['lora_enable'] is False\n"
    check += "assert type(training_args).__module__ == 'transformers.training_args'\n"
    done = subprocess.run([sys.executable, "-c", snippet + check], cwd=in_root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_every_shell_command_passes_check(document, in_root, tmp_path):
    """In a project folder of its own, where the document's custom configuration is written as it says."""
    commands = [body.replace("\\\n", " ") for body in blocks(document, "bash")]
    assert len(commands) == 3
    (tmp_path / "train.py").symlink_to(in_root / "train.py")
    (tmp_path / "configs/training").mkdir(parents=True)
    (tmp_path / "configs/training/my_config.yaml").write_text(blocks(document, "yaml")[0])
    for command in commands:
        words = shlex.split(command)
        assert words[:2] == ["python", "train.py"]
        done = subprocess.run([sys.executable, *words[1:], "--check"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, (command, done.stderr)


def test_the_overrides_win_and_the_custom_configuration_is_read(document, in_root, tmp_path):
    from loader.command_line.parser import parse_flags
    from loader.resolve.resolver import resolve

    words = shlex.split(blocks(document, "bash")[1].replace("\\\n", " "))[2:]
    run = resolve(parse_flags(words)[0])
    assert (run.hyper.output_dir, run.hyper.learning_rate, run.hyper.max_steps) == ("my_output", 0.001, 1000)
    assert run.hyper.per_device_train_batch_size == 16
    custom = tmp_path / "my_config.yaml"
    custom.write_text(blocks(document, "yaml")[0])
    run = resolve(training_config=custom)
    assert (run.hyper.output_dir, run.hyper.learning_rate, run.hyper.max_steps) == ("ckpt/my_training", 0.0005, 2000)


def test_warmup_ratio_and_logging_dir_work_where_transformers_dropped_them(in_root, tmp_path, monkeypatch):
    import os

    from configs.training.loader import create_training_arguments
    from train import HyperArguments

    hyper = HyperArguments(warmup_ratio=0.1, logging_dir=str(tmp_path / "tb"), output_dir=str(tmp_path / "o"))
    args = create_training_arguments("configs/training/default.yaml", hyper)
    assert args.get_warmup_steps(1000) == 100 and args.get_warmup_steps(995) == 100  # rounded up
    directory = getattr(args, "logging_dir", None) or os.environ["TENSORBOARD_LOGGING_DIR"]
    assert directory == str(tmp_path / "tb")
    every_step = create_training_arguments("configs/training/default.yaml", HyperArguments(warmup_ratio=1.0))
    assert every_step.get_warmup_steps(1000) == 1000
    assert "TENSORBOARD_LOGGING_DIR" not in os.environ or hasattr(args, "logging_dir")


def test_yaml_values_reach_training_arguments_and_a_given_flag_beats_them(in_root, tmp_path):
    from configs.training.loader import create_training_arguments, load_training_config
    from train import HyperArguments

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
