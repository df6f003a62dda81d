"""Runs of several processes: what is refused, and that accelerate reads the configurations in scripts/accelerate."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from forked_runs import server
from several_processes import ROOT, on_cpu
from text_sets import SMALL, write_set
from tiny_training import make_trainer

from storage import manifest
from trainer.distributed import DEEPSPEED_LINE, CannotDivide, check_launch, check_sharding, explain_first_step
from trainer.settings import TrainerSettings

CONFIGS = {
    "ddp.yaml": DistributedType.MULTI_GPU,
    "fsdp2.yaml": DistributedType.FSDP,
    "deepspeed_zero2.yaml": DistributedType.DEEPSPEED,
    "deepspeed_zero3.yaml": DistributedType.DEEPSPEED,
}
FOLDER = ROOT / "scripts" / "accelerate"


def test_every_configuration_is_tested_and_told_of():
    assert {path.name for path in FOLDER.glob("*.yaml")} == set(CONFIGS)
    told = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in told for name in CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_accelerate_takes_every_key(name):
    """As the launcher reads it: each key of a section becomes an argument of `accelerate launch`."""
    loaded = load_config_from_file(str(FOLDER / name))  # refuses unknown keys of the file itself
    assert loaded.distributed_type == CONFIGS[name]
    parser = launch_command_parser()
    words = ["--config_file", str(FOLDER / name), "--num_processes", "2", "--num_machines", "1", "train.py"]
    known = vars(parser.parse_args(words))
    sections = {**loaded.fsdp_config, **loaded.deepspeed_config}
    assert all(key in known or f"fsdp_{key}" in known for key in sections)
    arguments, _, _ = _validate_launch_command(parser.parse_args(words))
    assert all(getattr(arguments, key) == value for key, value in sections.items())
    assert arguments.num_processes == 2 and arguments.mixed_precision == "no"
    assert (arguments.use_fsdp, arguments.use_deepspeed, arguments.multi_gpu) == (
        name == "fsdp2.yaml",
        name.startswith("deepspeed"),
        name == "ddp.yaml",
    )


def test_the_number_of_processes_is_said_each_time():
    parser = launch_command_parser()
    with pytest.raises(ValueError, match="--num_processes"):
        _validate_launch_command(parser.parse_args(["--config_file", str(FOLDER / "ddp.yaml"), "train.py"]))


def test_processes_that_would_train_alone_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_launch(SimpleNamespace(world_size=2, n_gpu=1))
    with pytest.raises(
        ValueError, match="2 processes were started and each would train alone.*ACCELERATE_USE_CPU=true"
    ):
        check_launch(SimpleNamespace(world_size=1, n_gpu=1))
    monkeypatch.setenv("WORLD_SIZE", "")
    check_launch(SimpleNamespace(world_size=1, n_gpu=1))


def test_one_process_on_two_gpus_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="one process sees 2 GPUs.*CUDA_VISIBLE_DEVICES.*accelerate launch"):
        make_trainer(tmp_path, use_cpu=False)


@pytest.mark.parametrize(
    ("plugin", "settings", "adapted", "says"),
    [
        ({"fsdp_version": 1}, {}, None, "FSDP of version 1 is not supported; set `fsdp_version: 2`"),
        ({"fsdp_version": 2}, {"ema": object()}, None, "`using_ema` works with whole weights.* not with FSDP"),
        (None, {"ema": object()}, None, "`using_ema` works with whole weights.* not with DeepSpeed"),
        (None, {"first_optimizer": Path("x")}, None, "`load_optimizer` works with whole weights"),
        ({"fsdp_version": 2}, {}, {"quantization": {"bits": 4}}, "use_quantization"),
    ],
)
def test_what_divided_weights_cannot_do(plugin, settings, adapted, says):
    state = SimpleNamespace(fsdp_plugin=None if plugin is None else SimpleNamespace(**plugin))
    adapted = None if adapted is None else SimpleNamespace(**adapted)
    with pytest.raises(ValueError, match=says):
        check_sharding(SimpleNamespace(state=state), TrainerSettings(**settings), adapted)


class Failing(torch.optim.SGD):
    error = None

    def step(self, closure=None):
        if self.error is not None:
            raise self.error
        return super().step(closure)


def first_step(error):
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = Failing([weight], lr=1.0)
    optimizer.error = error
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)  # puts a step of its own there
    explain_first_step(SimpleNamespace(optimizer=optimizer), "Failing")
    weight.grad = torch.ones(2)
    optimizer.step()
    return weight, optimizer, schedule


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("aten.add_ got mixed torch.Tensor and DTensor"),
        NotImplementedError("Operator x does not have a sharding strategy registered."),
        AssertionError(),
    ],
)
def test_an_optimizer_that_cannot_divide_says_so_in_its_first_step(error):
    with pytest.raises(CannotDivide, match="optimizer `Failing` cannot train sharded weights"):
        first_step(error)


def test_other_errors_and_later_steps_are_left_alone(recwarn):
    with pytest.raises(RuntimeError, match="^no such thing$"):
        first_step(RuntimeError("no such thing"))
    with pytest.raises(torch.OutOfMemoryError):
        first_step(torch.OutOfMemoryError("sharded memory"))
    weight, optimizer, schedule = first_step(None)
    assert weight.tolist() == [0, 0]
    schedule.step()
    assert not [each for each in recwarn if "lr_scheduler" in str(each.message)]
    optimizer.error = RuntimeError("DTensor")
    with pytest.raises(RuntimeError, match="^DTensor$"):
        optimizer.step()


@pytest.mark.slow
def test_deepspeed_saves_its_own_files(tmp_path, monkeypatch):
    """With a stand-in for its engine: what the engine writes is staged, proven and published with the rest."""
    run = make_trainer(tmp_path, max_steps=2, max_grad_norm=0.0)
    run.train()

    def save_checkpoint(folder):
        path = Path(folder) / "global_step2" / "states.pt"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"the engine's")

    run.is_unsharded = False
    monkeypatch.setattr(run.accelerator, "get_state_dict", lambda engine: run.model.state_dict())
    run.is_deepspeed_enabled, run.model_wrapped = True, SimpleNamespace(save_checkpoint=save_checkpoint)
    run.checkpointing.save()
    run.checkpointing.wait_saved()
    saved = tmp_path / "checkpoint-2"
    assert manifest.verify(saved) is None
    names = set(manifest.read(saved)["files"])
    assert {"global_step2/states.pt", "model.safetensors", "scheduler.json"} <= names
    assert not {"optimizer.json", "optimizer.safetensors"} & names
    assert "\n" not in DEEPSPEED_LINE


@pytest.mark.slow
def test_launches_that_cannot_work_end_in_one_line(tmp_path, in_root, monkeypatch):
    monkeypatch.setenv("KEEL_HOME", str(tmp_path / "home"))
    write_set(tmp_path / "home" / "datasets" / "a")
    words = ["--dataset", "a", *SMALL.split(), "--out_dir", str(tmp_path / "out")]
    alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "ACCELERATE_USE_CPU": "false"}
    environment = on_cpu(**alone, ACCELERATE_USE_DEEPSPEED="true")
    done = server()(["train.py", *words], environment=environment)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ") and "DeepSpeed is not available" in done.stderr
