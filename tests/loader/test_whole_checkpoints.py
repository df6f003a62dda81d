"""A checkpoint that its manifest agrees with and that lacks what a resumed run needs: each is missed by its name."""

import pytest
from checkpoint_folders import write_checkpoint

from loader.resolve.resolver import resolve
from loader.resume import find_checkpoint
from storage import manifest

ADAPTER = ("adapter_model.safetensors", "adapter_config.json", "adaptation.json")
AVERAGES = ("ema.json", "ema.safetensors")


@pytest.fixture
def checkpoint(in_root, tmp_path):
    (tmp_path / "run.yaml").write_text("max_steps: 100\nmodel: {hidden_dim: 16}\n")
    made = write_checkpoint(tmp_path, resolve(training_config=tmp_path / "run.yaml"))
    for name in (*ADAPTER, *AVERAGES):
        (made / name).write_text('{"updates": 0}')
    return signed(made)


def signed(checkpoint):
    """With a manifest of the files that are there."""
    told = manifest.read(checkpoint)
    manifest.write(checkpoint, step=told["step"], world_size=told["world_size"])
    return checkpoint


@pytest.mark.parametrize(
    "name",
    [
        *("scheduler.json", "trainer_state.json", "run.yaml", "rng-0.json", "optimizer.json", "log_interval.json"),
        *("adapter_config.json", "adaptation.json", "ema.json", "ema.safetensors"),
    ],
)
def test_what_is_not_there_is_missed(checkpoint, name):
    assert find_checkpoint.fault(checkpoint) is None
    (checkpoint / name).unlink()
    assert find_checkpoint.fault(signed(checkpoint)) == f"has no {name}"


def test_what_belongs_to_an_adapter_or_to_averages_is_missed_only_there(checkpoint):
    for name in (*ADAPTER, *AVERAGES):
        (checkpoint / name).unlink()
    assert find_checkpoint.fault(signed(checkpoint)) is None
    (checkpoint / "model.safetensors").unlink()
    assert find_checkpoint.fault(signed(checkpoint)) == "has no model weights"


@pytest.mark.parametrize("name", ["optimizer-00001-of-00002.json", "global_step40/bf16_zero_optim_states.pt"])
def test_an_optimizers_state_in_parts_is_one(checkpoint, name):
    (checkpoint / "optimizer.json").unlink()
    (checkpoint / name).parent.mkdir(exist_ok=True)
    (checkpoint / name).write_text("{}")
    assert find_checkpoint.fault(signed(checkpoint)) is None
