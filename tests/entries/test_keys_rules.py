"""The effect of process keys and of sections, written in YAML, on a small run."""

import csv
import multiprocessing
import os
import threading

import pytest
import torch
import transformers
from run_results import error_line, tensors
from small_runs import STEPS_PER_EPOCH, SmallRuns, weights
from torch import nn

from loader.resolve.resolver import resolve
from models.mlp.network import MLP
from trainer.checkpointing import async_writer

pytestmark = pytest.mark.slow  # whole small runs, many of them

RATE = 0.01


def order(loader):
    return [step for batch in loader for step in batch["timestep"].tolist()]


# ---- data ----


@pytest.mark.keys("shuffle", "eval_shuffle")
def test_shuffle_and_eval_shuffle(run):
    plain, flipped = run(max_steps=1), run("shuffle: false\neval_shuffle: true", out="flipped", max_steps=1)
    assert order(flipped.get_train_dataloader()) == order(plain.get_eval_dataloader()) == list(range(12))
    for loader in (plain.get_train_dataloader(), flipped.get_eval_dataloader()):
        assert order(loader) != list(range(12)) and sorted(order(loader)) == list(range(12))


@pytest.mark.keys("eval_num_workers")
def test_eval_num_workers(run):
    trainer = run("eval_num_workers: 1", max_steps=1)
    before = set(multiprocessing.active_children())
    batches = iter(trainer.get_train_dataloader())
    next(batches)
    assert set(multiprocessing.active_children()) == before
    batches = iter(trainer.get_eval_dataloader())
    next(batches)
    assert len(set(multiprocessing.active_children()) - before) == 1


@pytest.mark.keys("limit_train_batches", "limit_val_batches")
@pytest.mark.parametrize(("limit", "batches"), [("2", 2), ("0.34", 1), ("1.0", 3)])
def test_limit_train_batches_and_limit_val_batches(run, limit, batches):
    trainer = run(f"limit_train_batches: {limit}\nlimit_val_batches: {limit}", num_train_epochs=2)
    assert trainer.state.global_step == 2 * batches and len(trainer.get_eval_dataloader()) == batches


@pytest.mark.keys("cache_dir", "dataset(demonstrations).chunk_size")
def test_chunk_size_and_cache_dir(run, tmp_path):
    batch = next(iter(run("dataset: {chunk_size: 5}").get_train_dataloader()))
    assert batch["actions"].shape == (4, 5, 14)
    assert not (tmp_path / "elsewhere").exists()
    run(f"cache_dir: {tmp_path / 'elsewhere'}", out="other", max_steps=1)
    assert any(files for _, _, files in os.walk(tmp_path / "elsewhere"))


@pytest.mark.keys("dataset.name", "env.name", "model.name")
@pytest.mark.parametrize("section", ["dataset", "env", "model"])
def test_a_name_chooses_the_module(in_root, tmp_path, monkeypatch, section):
    """A component of Keel or a module of the user's own."""
    lab = f"lab_of_{section}s"
    (tmp_path / lab).mkdir()
    (tmp_path / lab / "own.py").write_text(
        "from dataclasses import dataclass\nPROCESS_KEYS = frozenset()\n@dataclass\nclass Config:\n    width: int = 3\n"
        "def make(*_): pass\ndef load(folder): pass\n"
        + ("def build(config, process): pass\n" if section == "model" else "def build(config, run): pass\n")
    )
    monkeypatch.syspath_prepend(tmp_path)
    shipped = {"dataset": "data.demonstrations", "env": "sim.aloha", "model": "models.act"}[section]
    assert getattr(resolve(), section).module.__name__ == shipped
    found = getattr(resolve(settings=[f"{section}={{name: {lab}.own, width: 5}}"]), section)
    assert found.module.__name__ == f"{lab}.own" and found.config.width == 5


# ---- optimizer, schedule, groups ----


@pytest.mark.keys("optimizer.name", "optimizer.lr", "optimizer.weight_decay", "optimizer.betas", "optimizer.eps")
def test_the_optimizer_section(run):
    section = "{name: AdamW, lr: 0.02, weight_decay: 0.3, betas: [0.5, 0.6], eps: 0.1, amsgrad: true}"
    optimizer = run(f"optimizer: {section}").optimizer
    group = optimizer.param_groups[0]
    assert type(optimizer.optimizer) is torch.optim.AdamW
    values = {name: group[name] for name in ("lr", "weight_decay", "betas", "eps", "amsgrad")}
    assert values == {"lr": 0.02, "weight_decay": 0.3, "betas": (0.5, 0.6), "eps": 0.1, "amsgrad": True}
    assert list(run.log("learning_rate").values()) == [0.02] * 4


@pytest.mark.keys("scheduler.name", "scheduler.interval", "scheduler.frequency")
@pytest.mark.parametrize(
    ("section", "halvings"),
    [
        ("interval: step", [0, 1, 2, 3, 4, 5]),
        ("interval: step, frequency: 2", [0, 0, 1, 1, 2, 2]),
        ("interval: epoch", [0, 0, 0, 1, 1, 1]),
        ("name: ExponentialLR, interval: epoch, step_size: null", [0, 0, 0, 1, 1, 1]),
    ],
)
def test_scheduler_name_interval_and_frequency(run, section, halvings):
    options = {"name": "StepLR", "step_size": 1, "gamma": 0.5} | dict(pair.split(": ") for pair in section.split(", "))
    text = ", ".join(f"{key}: {value}" for key, value in options.items() if value != "null")
    run(f"scheduler: {{{text}}}", max_steps=6)
    assert list(run.log("learning_rate").values()) == pytest.approx([RATE * 0.5**halving for halving in halvings])


@pytest.mark.keys("scheduler.monitor")
@pytest.mark.parametrize(("monitor", "key"), [("loss", "loss"), ("eval_loss", "eval_loss")])
def test_scheduler_monitor(run, monitor, key):
    """torch's own schedule gives the same rates for the logged values."""
    text = f"{{name: ReduceLROnPlateau, monitor: {monitor}, interval: step, mode: max, patience: 1, factor: 0.5}}"
    run(f"scheduler: {text}", max_steps=8, eval_steps=1)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=RATE)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", patience=1, factor=0.5)
    expected = []
    for value in run.log(key).values():
        expected.append(optimizer.param_groups[0]["lr"])
        schedule.step(value)
    assert list(run.log("learning_rate").values()) == pytest.approx(expected) and expected[-1] < RATE


@pytest.mark.keys("param_groups.pattern", "param_groups.lr", "param_groups.lr_factor", "param_groups.weight_decay")
def test_param_groups(run):
    """Groups have their rates and weight decays; a group with rate zero does not change."""
    start = weights(run(out="start", max_steps=1, learning_rate=0))
    trainer = run(
        "param_groups: [{pattern: head, lr: 0}, {pattern: trunk, lr_factor: 0.5, weight_decay: 0.25}]", out="groups"
    )
    after = weights(trainer)
    assert {name for name in start if torch.equal(start[name], after[name])} == {"head.weight", "head.bias"}
    groups = {(group["initial_lr"], group["weight_decay"]) for group in trainer.optimizer.param_groups}
    assert groups == {(0.0, 0.0), (RATE / 2, 0.25), (RATE / 2, 0.0)}


@pytest.mark.keys("warmup_epochs")
def test_warmup_epochs(run):
    run("warmup_epochs: 1")
    assert list(run.log("learning_rate").values()) == pytest.approx([0, RATE / 3, 2 * RATE / 3, RATE])


@pytest.mark.keys("no_decay_verbose")
def test_no_decay_verbose(run, capfd):
    run(out="plain", max_steps=1)
    assert "trunk.0.bias" not in capfd.readouterr().out
    run("no_decay_verbose: true", out="verbose", max_steps=1)
    assert "trunk.0.bias" in capfd.readouterr().out


# ---- steps ----


@pytest.mark.keys("grad_clip_threshold")
def test_grad_clip_threshold(run):
    run(out="low", max_steps=2)
    norms = run.log("grad_norm", "low").values()
    run(f"grad_clip_threshold: {min(norms) / 2}", out="low2", max_steps=2)
    run(f"grad_clip_threshold: {max(norms) * 2}", out="high", max_steps=2)
    assert list(run.log("grad_clip_pct", "low2").values()) == [100, 100]
    assert list(run.log("grad_clip_pct", "high").values()) == [0, 0]


@pytest.mark.keys("stop_after_nonfinite")
def test_stop_after_nonfinite(run, capfd):
    """With this rate the first step overflows float32, and every later one is skipped."""
    flags = {"learning_rate": 1e38, "do_eval": "false"}
    assert run.new(**flags).state.global_step == 4
    assert "not finite" in error_line(capfd, run.new, "stop_after_nonfinite: 2", code=1, **flags)
    assert list(run.log("loss")) == [1, 2]


@pytest.mark.keys("tune_batch_size")
def test_tune_batch_size(run, tmp_path, monkeypatch):
    """The size is doubled from 2 while a step fits into memory, here up to 4 samples, and while the data suffices."""
    plain = {"max_steps": 1, "per_device_train_batch_size": 2, "per_device_eval_batch_size": 4}
    assert run("tune_batch_size: true", out="all", **plain).args.per_device_train_batch_size == 8
    forward = MLP.forward

    def too_large(self, state, *more, **options):
        if len(state) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, state, *more, **options)

    monkeypatch.setattr(MLP, "forward", too_large)
    trainer = run("tune_batch_size: true", **plain)
    assert trainer.args.per_device_train_batch_size == 4 and trainer.state.global_step == 1
    assert "# effective: per_device_train_batch_size 4" in (tmp_path / "out" / "run.yaml").read_text()


@pytest.mark.keys("benchmark_train_step")
def test_benchmark_train_step(run):
    for setting, steps in (("false", []), ("true", [1, 2])):
        run.new(f"benchmark_train_step: {setting}", max_steps=2, logging_steps=2)
        assert list(run.log("train_step_ms")) == steps


# ---- resuming ----


@pytest.mark.keys("validate_before_resume", "resume_lr", "resume_weight_decay")
def test_what_a_resumed_run_may_change(run):
    run(save_strategy="steps", save_steps=2)
    checkpoint = run.folder / "out" / "checkpoint-2"
    run("resume_lr: 0.005\nresume_weight_decay: 0.2", out="changed", resume_from_checkpoint=checkpoint)
    assert run.log("learning_rate", "changed") == {3: 0.005, 4: 0.005}
    assert run.log("weight_decay", "changed") == {3: 0.2, 4: 0.2} != run.log("weight_decay", "out")
    assert list(run.log("eval_loss", "changed")) == [4]
    run("validate_before_resume: true", out="validated", resume_from_checkpoint=checkpoint)
    assert list(run.log("eval_loss", "validated")) == [2, 4]
    run("resume_lr: 0.005\nresume_weight_decay: 0.2\nvalidate_before_resume: true", out="fresh", max_steps=1)
    assert run.log("learning_rate", "fresh") == {1: RATE} and list(run.log("eval_loss", "fresh")) == [1]


# ---- averaged weights ----


@pytest.mark.keys("using_ema", "ema.decay", "ema.warmup", "ema.update_every")
def test_the_averaged_weights_by_hand(run, tmp_path):
    """The average after two steps; w0, w1, w2 are the weights before, between and after them."""
    w0, w1, w2 = (
        weights(run(out=out, max_steps=steps, learning_rate=rate))
        for out, steps, rate in (("w0", 1, 0), ("w1", 1, RATE), ("w2", 2, RATE))
    )

    def mixed(first, second):
        """The average after two updates with these decays."""
        return {name: second * (first * w0[name] + (1 - first) * w1[name]) + (1 - second) * w2[name] for name in w0}

    for out, section, expected in (
        ("decay", "{decay: 0.5, warmup: false}", mixed(0.5, 0.5)),
        ("warm", "{decay: 0.9, warmup: true}", mixed(1 / 10, 2 / 11)),
        ("seldom", "{decay: 0.5, warmup: false, update_every: 2}", {name: (w0[name] + w2[name]) / 2 for name in w0}),
    ):
        run(f"using_ema: true\nema: {section}", out=out, max_steps=2)
        saved = tensors(tmp_path / out)
        for name, value in expected.items():
            torch.testing.assert_close(saved[name], value, msg=f"{out} {name}")


# ---- early stopping ----


@pytest.fixture(scope="module")
def curve(tmp_path_factory):
    """Losses of nine steps without any rule, in evaluation and in training."""
    runs = SmallRuns(tmp_path_factory.mktemp("curve"))
    runs(max_steps=9, eval_steps=1, learning_rate=0.1)
    return runs.log("eval_loss"), runs.log("loss")


def first_stop(values, patience=10, mode="min", min_delta=0.0, reached=None, worse=None):
    """The step after which the rules end the run; the last one if they do not."""
    best, bad, sign = float("inf"), 0, 1 if mode == "min" else -1
    for step, value in values.items():
        bad = 0 if sign * value < best - min_delta else bad + 1
        best = sign * value if bad == 0 else best
        beyond = (reached is not None and value <= reached) or (worse is not None and value > worse)
        if bad >= patience or beyond:
            return step
    return step


@pytest.mark.keys(
    "early_stopping.monitor",
    "early_stopping.mode",
    "early_stopping.patience",
    "early_stopping.min_delta",
    "early_stopping.check_on_train_epoch_end",
    "early_stopping.stopping_threshold",
    "early_stopping.divergence_threshold",
)
def test_early_stopping(run, curve):
    evaluated, trained = curve
    middle = sorted(evaluated.values())[4]
    ends = set()
    at_epochs = {step: evaluated[step] for step in (3, 6, 9)}
    for section, expected in (
        ("{patience: 2}", first_stop(evaluated, 2)),
        ("{mode: max, patience: 1}", first_stop(evaluated, 1, "max")),
        ("{mode: max, patience: 3}", first_stop(evaluated, 3, "max")),
        ("{patience: 2, min_delta: 100}", first_stop(evaluated, 2, min_delta=100)),
        (f"{{stopping_threshold: {middle}}}", first_stop(evaluated, reached=middle)),
        (f"{{divergence_threshold: {middle}}}", first_stop(evaluated, worse=middle)),
        ("{monitor: loss, mode: max, patience: 1}", first_stop(trained, 1, "max")),
        ("{mode: max, patience: 1, check_on_train_epoch_end: true}", first_stop(at_epochs, 1, "max")),
    ):
        trainer = run.new(f"early_stopping: {section}", max_steps=9, eval_steps=1, learning_rate=0.1)
        assert trainer.state.global_step == expected, section
        ends.add(expected)
    assert len(ends) > 3


@pytest.mark.keys("early_stopping.strict", "early_stopping.verbose")
def test_early_stopping_strict_and_verbose(run, capfd):
    assert (
        run.new("early_stopping: {monitor: val_accuracy, mode: max, strict: false}", eval_steps=1).state.global_step
        == 4
    )
    with pytest.raises((ValueError, SystemExit)):  # at the first evaluation
        run.new("early_stopping: {monitor: val_accuracy, mode: max}", eval_steps=1)
    assert "improved" not in capfd.readouterr().err
    run.new("early_stopping: {verbose: true}", eval_steps=1)
    assert "eval_loss improved to" in capfd.readouterr().err


@pytest.mark.keys("min_epochs")
def test_min_epochs(run):
    """The threshold is reached at the first evaluation."""
    rule = "early_stopping: {stopping_threshold: 1000}"
    assert run(rule, out="a", eval_steps=1).state.global_step == 1
    waited = run(f"{rule}\nmin_epochs: 2", out="b", eval_steps=1, max_steps=9)
    assert waited.state.global_step == 2 * STEPS_PER_EPOCH


@pytest.mark.keys("check_val_every_n_epoch")
def test_check_val_every_n_epoch(run):
    for every, steps in ((1, [3, 6, 9, 12]), (2, [6, 12]), (3, [9])):
        run(f"check_val_every_n_epoch: {every}\neval_steps: null", out=str(every), num_train_epochs=4)
        assert list(run.log("eval_loss", str(every))) == steps


# ---- checkpoints ----


@pytest.mark.keys(
    "checkpointing.monitor",
    "checkpointing.mode",
    "checkpointing.save_top_k",
    "checkpointing.save_last",
    "checkpointing.every_n_epochs",
)
def test_checkpointing(run, curve):
    evaluated, trained = curve
    by_loss = sorted(evaluated, key=evaluated.get)
    only = "save_last: false, every_n_epochs: 0"
    for section, kept in (
        (f"monitor: val_loss, save_top_k: 1, {only}", by_loss[:1]),
        (f"monitor: val_loss, save_top_k: 1, mode: max, {only}", by_loss[-1:]),
        (f"monitor: val_loss, save_top_k: 3, {only}", by_loss[:3]),
        (f"monitor: loss, save_top_k: 1, mode: max, {only}", [max(trained, key=trained.get)]),
        (f"monitor: val_loss, save_top_k: 0, {only}", []),
        ("monitor: val_loss, save_top_k: 1, every_n_epochs: 0", [by_loss[0], 9]),
        ("save_last: false", [3, 6, 9]),
        ("save_last: false, every_n_epochs: 2", [6]),
    ):
        run.new(f"checkpointing: {{{section}}}", max_steps=9, eval_steps=1, learning_rate=0.1)
        assert run.checkpoints() == sorted(set(kept)), section


@pytest.mark.keys("checkpointing.dirpath")
def test_checkpointing_dirpath(run):
    run(f"checkpointing: {{dirpath: {run.folder / 'elsewhere'}}}", max_steps=3)
    assert run.checkpoints("elsewhere") == [3] and run.checkpoints("out") == []


# ---- logging, callbacks ----


@pytest.mark.keys("logging.logger_type", "logging.save_dir")
def test_csv_logger_and_its_folder(run):
    run(f"logging: {{logger_type: CSVLogger, save_dir: {run.folder / 'tables'}}}", max_steps=2)
    with open(run.folder / "tables" / "metrics.csv", newline="") as file:
        assert [row["step"] for row in csv.DictReader(file) if row["loss"]] == ["1", "2"]
    assert not (run.folder / "out" / "metrics.csv").exists()
    run(f"logging: {{logger_type: CSVLogger, name: nick, save_dir: {run.folder / 'tables'}}}", out="named", max_steps=1)
    assert (run.folder / "tables" / "nick" / "metrics.csv").exists()


@pytest.mark.keys(
    "logging.name",
    "logging.project",
    "logging.entity",
    "logging.group",
    "logging.notes",
    "logging.log_model",
    "logging.mode",
    "run_name",
    "project",
)
def test_settings_of_loggers(run, monkeypatch):
    """The section in each logger's own terms; the loggers are not started."""
    monkeypatch.setattr(transformers.trainer, "get_reporting_integration_callbacks", lambda names: [])
    monkeypatch.setattr(os, "environ", os.environ.copy())
    section = "name: n, project: p, entity: e, group: g, notes: a note, log_model: all, mode: offline"
    args = run(f"logging: {{logger_type: WandbLogger, {section}}}", out="wandb", max_steps=1).args
    words = {
        "PROJECT": "p",
        "ENTITY": "e",
        "RUN_GROUP": "g",
        "NOTES": "a note",
        "LOG_MODEL": "checkpoint",
        "MODE": "offline",
    }
    assert {name: os.environ.get(f"WANDB_{name}") for name in words} == words
    assert args.run_name == "n" and args.report_to == ["wandb"]
    monkeypatch.setattr("loader.checks.names.backend_is_installed", lambda name: True)
    args = run("logging: {name: n, project: p}\nreport_to: trackio", out="trackio", max_steps=1).args
    assert (args.run_name, args.project, args.report_to) == ("n", "p", ["trackio"])


@pytest.mark.keys("callbacks")
def test_callbacks(run):
    assert run("callbacks: [{name: small_runs.StopsAfter, step: 2}]").state.global_step == 2


# ---- machine ----


@pytest.mark.keys("accelerator", "strategy")
def test_accelerator_and_strategy(run, capfd):
    assert run("accelerator: cpu", out="cpu", max_steps=1).args.use_cpu
    plain = run(out="plain", max_steps=1).args
    assert not plain.use_cpu and plain.ddp_find_unused_parameters is False
    if not torch.cuda.is_available():
        run("accelerator: gpu", out="gpu", max_steps=1)
        assert "accelerator: gpu" in capfd.readouterr().out
    args = run("strategy: ddp_find_unused_parameters_true", out="ddp", max_steps=1).args
    assert args.ddp_find_unused_parameters is True


@pytest.mark.keys("devices")
def test_devices(run, capfd, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert run("devices: 1", max_steps=1).args.world_size == 1
    assert "`devices: 2`" in error_line(capfd, run.new, "devices: 2")


@pytest.mark.keys("save_in_background", "max_failed_saves")
def test_background_saves_and_failed_saves(run, monkeypatch, capfd):
    threads, original = [], async_writer.write

    def write(save):
        threads.append(threading.current_thread().name)
        original(save)

    monkeypatch.setattr(async_writer, "write", write)
    every = "save_strategy: steps\nsave_steps: 2"
    run(every)
    run(f"{every}\nsave_in_background: false", out="waiting")
    assert threads == ["save checkpoint-2", "save checkpoint-4", "MainThread", "MainThread"]

    def fail(save):
        steps.append(save.step)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(async_writer, "write", fail)
    for allowed, expected in ((1, [2]), (2, [2, 4])):
        steps = []
        text = f"{every}\nmax_steps: 8\nmax_failed_saves: {allowed}"
        assert "max_failed_saves" in error_line(capfd, run.new, text, code=1) and steps == expected
