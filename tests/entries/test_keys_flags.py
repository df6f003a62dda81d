"""The effect of each flag on a small run; expected rates and counts are computed by hand."""

import math
import multiprocessing
import os

import pytest
import torch
from demonstration_files import write_act_folder
from run_results import same
from small_runs import SmallRuns, weights
from transformers import TrainerCallback

import train

pytestmark = pytest.mark.slow  # whole small runs, many of them

RATE = 0.01


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Weights of the run that changes nothing."""
    return weights(SmallRuns(tmp_path_factory.mktemp("plain"))())


# ---- what to run ----


@pytest.mark.keys("task_name", "model_config")
def test_task_name_and_model_config_choose_data_and_network(run, tmp_path):
    write_act_folder(tmp_path / "others", (9, 9), dims=(5, 2))
    (tmp_path / "other.yaml").write_text(f"dataset: {{name: demonstrations, path: {tmp_path / 'others'}}}\n")
    (tmp_path / "net.yaml").write_text("model: {name: mlp, hidden_dim: 4}\n")
    trainer = run(task_name=tmp_path / "other.yaml", model_config=tmp_path / "net.yaml", max_steps=1)
    config = trainer.model.config
    assert (config.state_dim, config.action_dim, len(trainer.train_dataset)) == (5, 2, 18)
    assert run(out="second").model.config.action_dim == 14


@pytest.mark.keys("training_config", "output_dir")
def test_training_config_and_output_dir(run, tmp_path):
    (tmp_path / "shorter.yaml").write_text(f"extends: {tmp_path / 'base.yaml'}\nmax_steps: 2\n")
    flags = ["--training_config", str(tmp_path / "shorter.yaml"), "--output_dir", str(tmp_path / "here")]
    assert train.main(flags).state.global_step == 2 and (tmp_path / "here" / "model.safetensors").exists()


@pytest.mark.keys("seed")
def test_seed(run, plain):
    assert same(run(seed=42), plain) and not same(run(out="other", seed=43), plain)


@pytest.mark.keys("resume_from_checkpoint")
def test_resume_from_checkpoint(run, plain, tmp_path):
    run(out="out", save_strategy="steps", save_steps=2)
    again = run(out="on", resume_from_checkpoint=tmp_path / "out" / "checkpoint-2")
    assert list(run.log("loss", "on")) == [3, 4] and same(again, plain)


# ---- how long, on how much ----


@pytest.mark.keys("num_train_epochs", "max_steps", "per_device_train_batch_size", "per_device_eval_batch_size")
def test_length_and_batch_sizes(run, tmp_path):
    for flags, steps in (
        ({"num_train_epochs": 2}, 6),
        ({"max_steps": 5}, 5),
        ({"num_train_epochs": 1, "per_device_train_batch_size": 5}, 3),
        ({"num_train_epochs": 1, "per_device_train_batch_size": 2}, 6),
    ):
        assert run.new(**flags).state.global_step == steps, flags

    class Counts(TrainerCallback):
        batches = 0

        def on_prediction_step(self, *arguments, **options):
            self.batches += 1

    trainer = run(out="e", max_steps=1, per_device_eval_batch_size=6)
    counts = Counts()
    trainer.add_callback(counts)
    trainer.evaluate()
    assert counts.batches == 2  # 12 samples


# ---- optimization ----


@pytest.mark.keys("learning_rate", "warmup_steps", "warmup_ratio", "lr_scheduler_type", "min_lr", "lr_decay_iters")
def test_learning_rate_schedules(run):
    """Each schedule by its formula."""
    cosine = [(1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
    for flags, expected in (
        ({"learning_rate": 0.02}, [0.02] * 4),
        ({"warmup_steps": 3}, [RATE * step / 3 for step in range(4)]),
        ({"warmup_ratio": 0.5}, [0, RATE / 2, RATE, RATE]),
        ({"lr_scheduler_type": "linear"}, [RATE * (1 - step / 4) for step in range(4)]),
        ({"lr_scheduler_type": "cosine", "min_lr": 0.002}, [0.002 + (RATE - 0.002) * share for share in cosine]),
        ({"lr_scheduler_type": "linear", "lr_decay_iters": 2}, [RATE, RATE / 2, 0, 0]),
    ):
        run.new(**flags)
        assert list(run.log("learning_rate").values()) == pytest.approx(expected, abs=1e-12), flags


@pytest.mark.keys("optim", "weight_decay")
def test_optim_and_weight_decay(run):
    """Weight decay reduces matrices and does not change biases."""
    assert type(run(out="sgd", optim="SGD", max_steps=1).optimizer.optimizer) is torch.optim.SGD
    start, plain, trainer = (
        run(out=out, max_steps=1, learning_rate=rate, weight_decay=decay, optim="SGD")
        for out, rate, decay in (("start", 0, 0), ("plain", 0.1, 0), ("decayed", 0.1, 0.5))
    )
    decayed, plain = weights(trainer), weights(plain)
    for name, before in weights(start).items():
        expected = plain[name] - (0.1 * 0.5 * before if name.endswith("weight") else 0)
        torch.testing.assert_close(decayed[name], expected, msg=name)
    decays = {
        (value.ndim, group["weight_decay"]) for group in trainer.optimizer.param_groups for value in group["params"]
    }
    assert decays == {(2, 0.5), (1, 0.0)}  # the first biases are zero, so that their decay would not show above


@pytest.mark.keys("adam_beta1", "adam_beta2", "adam_epsilon")
def test_adam_options(run, plain):
    flags = {"adam_beta1": 0.5, "adam_beta2": 0.6, "adam_epsilon": 0.1}
    for name, value in flags.items():
        assert not same(run.new(**{name: value}), plain), name
    group = run(out="all", **flags).optimizer.param_groups[0]
    assert (group["betas"], group["eps"]) == ((0.5, 0.6), 0.1)


# ---- logging and saving ----


@pytest.mark.keys("logging_dir", "logging_strategy", "logging_steps", "report_to")
def test_when_to_log_and_where(run, tmp_path):
    run(out="steps", logging_steps=2)
    assert list(run.log("loss", "steps")) == [2, 4]
    run("logging_strategy: epoch", out="epochs", num_train_epochs=2)
    assert list(run.log("loss", "epochs")) == [3, 6]
    run(out="board", report_to="tensorboard", logging_dir=tmp_path / "events")
    assert any("tfevents" in name for name in os.listdir(tmp_path / "events"))
    assert not (tmp_path / "board" / "runs").exists() and not (tmp_path / "steps" / "runs").exists()


@pytest.mark.keys("save_strategy", "save_steps", "save_total_limit")
def test_when_to_save(run):
    for flags, steps in (
        ({"save_strategy": "steps", "save_steps": 2}, [2, 4]),
        ({"save_strategy": "epoch", "num_train_epochs": 2}, [3, 6]),
        ({"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}, [3, 4]),
        ({"save_strategy": "no"}, []),
    ):
        run.new(**flags)
        assert run.checkpoints() == steps, flags


# ---- data loading ----


@pytest.mark.keys("dataloader_num_workers", "dataloader_pin_memory")
def test_workers_load_the_data(run, plain, capfd):
    trainer = run(dataloader_num_workers=1, dataloader_pin_memory="true", do_eval="false")
    assert same(trainer, plain)
    before = len(multiprocessing.active_children())
    batches = iter(trainer.get_train_dataloader())
    batch = next(batches)
    assert len(multiprocessing.active_children()) == before + 1
    if torch.cuda.is_available():
        assert all(value.is_pinned() or value.is_cuda for value in batch.values())
    else:
        assert "dataloader_pin_memory: no accelerator is used" in capfd.readouterr().out


@pytest.mark.keys("remove_unused_columns")
def test_remove_unused_columns(run):
    """The model's forward has a parameter `state` and none that is called `timestep`."""
    for wanted in ("true", "false"):
        batch = next(iter(run(out=wanted, max_steps=1, remove_unused_columns=wanted).get_train_dataloader()))
        assert "state" in batch and ("timestep" in batch) == (wanted == "false")


# ---- evaluation ----


@pytest.mark.keys("do_eval", "eval_steps")
def test_when_to_evaluate(run):
    run.new(do_eval="false", max_steps=2)
    assert run.log("eval_loss") == {}
    run.new(eval_steps=2)
    assert list(run.log("eval_loss")) == [2, 4]
