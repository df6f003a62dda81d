"""Which GPUs a process uses: one, whatever it sees."""

import os

import pytest
import torch

from loader.checks.launch import apply_hardware, idle_gpu_lines
from loader.command_line.parser import HyperArguments
from loader.errors import ConfigError
from loader.output.training_arguments import training_arguments
from loader.resolve.resolver import resolve
from trainer.hf_patches import use_one_gpu

VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")


@pytest.fixture
def run(in_root, tmp_path, monkeypatch):
    """A run with some keys of its own, on a machine that hides no GPU."""
    for variable in (*VARIABLES, "WORLD_SIZE"):
        monkeypatch.setenv(variable, "")  # so that it is put back as it was, whatever a run sets
        monkeypatch.delenv(variable)

    def resolved(*keys):
        return resolve(HyperArguments(output_dir=str(tmp_path / "out")), list(keys))

    return resolved


def visible():
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}


@pytest.mark.parametrize("devices", ["auto", "-1", "1"])
def test_one_process_uses_one_of_two_gpus_and_says_so(run, monkeypatch, devices):
    """transformers counts them for itself; what is excluded by name needs no line."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    chosen = run(f"devices={devices}", "per_device_train_batch_size=3")
    arguments = training_arguments(chosen)
    lines = idle_gpu_lines(chosen, use_one_gpu(arguments))
    assert arguments.n_gpu == 1 and arguments.train_batch_size == 3 and arguments.parallel_mode.value == "not_parallel"
    assert len(lines) == (devices != "1")
    assert visible() == {}


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_to_say_of_one_gpu_or_none(run, monkeypatch, count):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    chosen = run()
    arguments = training_arguments(chosen)
    assert idle_gpu_lines(chosen, use_one_gpu(arguments)) == [] and arguments.n_gpu == count


@pytest.mark.parametrize(("processes", "is_set"), [(1, None), (2, "true")])
def test_several_processes_without_a_gpu_use_the_cpu(run, monkeypatch, processes, is_set):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "False")  # put back afterwards
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    lines = apply_hardware(run(), {})
    assert os.environ.get("ACCELERATE_USE_CPU") == is_set and len(lines) == (processes > 1)


@pytest.mark.parametrize("key", ["fp16", "tf32"])
@pytest.mark.parametrize("by", ["a machine without a GPU", "use_cpu=true"])
def test_a_precision_that_the_device_lacks_is_refused(run, monkeypatch, key, by):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: "=" in by)
    chosen = run(f"{key}=true")
    values = {"use_cpu": "use_cpu" in by}
    with pytest.raises(ConfigError) as error:
        apply_hardware(chosen, values)
    assert [line.partition(" needs ")[0] for line in error.value.problems] == [f"`{key}: true` in --set"]


def test_bfloat16_needs_a_gpu_that_has_it_or_none(run, monkeypatch):
    chosen = run("bf16=true")
    assert apply_hardware(chosen, {"use_cpu": True}) == []
    for name, value in (("is_available", True), ("is_bf16_supported", False), ("get_device_capability", (7, 5))):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    with pytest.raises(ConfigError) as error:
        apply_hardware(chosen, {})
    assert error.value.problems[0].startswith("`bf16: true` in --set needs")


@pytest.mark.parametrize(("before", "after"), [(None, "1"), ("4, 6", "6"), ("MIG-a,MIG-b", "MIG-b")])
def test_the_gpu_that_is_named(run, monkeypatch, before, after):
    """Counted within those that the process sees, in whatever words they are named."""
    if before is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before)
    assert apply_hardware(run("devices=[1]"), {}) == [] and visible() == {"CUDA_VISIBLE_DEVICES": after}


@pytest.mark.parametrize("hidden", ["", "0"])
def test_a_gpu_that_is_hidden_stays_so(run, monkeypatch, hidden):
    """An empty list hides them all."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    with pytest.raises(ConfigError, match=r"`devices: \[1\]`.*does not see.*count from 0 within it"):
        apply_hardware(run("devices=[1]"), {})
    apply_hardware(run("devices=1"), {})
    assert visible() == {"CUDA_VISIBLE_DEVICES": hidden}
