"""What the environment says of a run: refused in one line where the training file does not know of it."""

import pytest

from loader.checks import static_checks
from loader.resolve.resolver import resolve

TEXT = "task_name: text\nmodel_config: gpt\nmax_steps: 10\ndataset: {path: a}\n"


@pytest.fixture
def said(in_root, tmp_path, monkeypatch):
    """The problems that speak of the environment, of a training file's text."""

    def problems(text="", **environment):
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            (tmp_path / "run.yaml").write_text(f"{TEXT}output_dir: {tmp_path / 'out'}\n{text}\n")
            found = static_checks.check_run(resolve(training_config=tmp_path / "run.yaml"))
        return [line for line in found if "in the environment" in line]

    return problems


def test_what_is_no_number_of_processes_counts_as_one(in_root, tmp_path, monkeypatch):
    """Where the data is looked at, before all problems are told together."""
    monkeypatch.setenv("WORLD_SIZE", "abc")
    (tmp_path / "run.yaml").write_text(TEXT)
    run = resolve(training_config=tmp_path / "run.yaml")
    assert run.samples_per_step == run.hyper.per_device_train_batch_size


@pytest.mark.slow
def test_precision_is_the_training_files(said):
    (line,) = said("bf16: true", ACCELERATE_MIXED_PRECISION="fp16")
    assert "the training file says bf16 at " in line and "run.yaml:6:1" in line
    assert len(said(ACCELERATE_MIXED_PRECISION="fp8")) == 1
    assert said("bf16: true", ACCELERATE_MIXED_PRECISION="no") == []  # what scripts/accelerate/*.yaml say
    assert said("bf16: true", ACCELERATE_MIXED_PRECISION="BF16") == said("fp16: true") == []


def test_a_launch_with_a_precision_configures_it_where_nothing_else_does(said, in_root, tmp_path, monkeypatch):
    assert said(ACCELERATE_MIXED_PRECISION="bf16") == []
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    run = resolve(training_config=tmp_path / "run.yaml")
    assert run.trainer["bf16"] is True and run.origins()["bf16"] == "launcher"
    assert len([note for note in run.notes if "bf16" in note]) == 1


@pytest.mark.slow
def test_compilation_is_the_training_files(said):
    (line,) = said(ACCELERATE_DYNAMO_BACKEND="INDUCTOR")
    assert "`torch_compile_backend: null`" in line and "leave it out" in line
    launcher = {"BACKEND": "NO", "MODE": "default", "USE_FULLGRAPH": "False", "USE_DYNAMIC": "False"}
    launcher = {f"ACCELERATE_DYNAMO_{name}": value for name, value in launcher.items()}
    assert said(**launcher) == said("torch_compile: true", **launcher) == []
    assert said("torch_compile: true", ACCELERATE_DYNAMO_BACKEND="INDUCTOR") == []
    (line,) = said("torch_compile_backend: eager", ACCELERATE_DYNAMO_BACKEND="INDUCTOR")
    assert "`torch_compile_backend: eager` at" in line
