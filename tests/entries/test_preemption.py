"""Told to stop at any moment, a run saves, leaves with 75, and goes on as if nothing had been."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from small_runs import SmallRuns, weights
from torch.utils.data import DataLoader

from storage import manifest
from storage.checkpoints import checkpoints
from trainer import preemption
from trainer.trainer import _Hooks

ROOT = Path(__file__).resolve().parent.parent.parent
CLOCK = ("second", "runtime", "_ms", "memory", "train_loss")


@pytest.fixture
def run(in_root, tmp_path):
    return SmallRuns(tmp_path)


def logged(folder):
    """metrics.jsonl without what depends on the clock and the machine."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not any(each in name for each in CLOCK)} for line in lines]


@contextlib.contextmanager
def told(monkeypatch, event, step, number=signal.SIGTERM, after=0):
    """Inside, the process gets a signal when a callback's event comes at a step, `after` more of them."""
    seen = []
    original = getattr(_Hooks, event)

    def heard(self, args, state, control, **kwargs):
        if state.global_step == step:
            seen.append(step)
            if len(seen) == after + 1:
                os.kill(os.getpid(), number)
        return original(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(_Hooks, event, heard)
        yield seen


def leaves(run, *arguments, **options):
    """The exit code of a run that does not come to its end."""
    with pytest.raises(SystemExit) as left:
        run(*arguments, **options)
    return left.value.code


BASE = "logging_steps: 2\nsave_strategy: steps\nsave_steps: 4\neval_steps: 3\nmax_steps: 11"
CASES = {
    "between two steps": (BASE, "on_step_begin", 5, 0),
    "mid-accumulation": (BASE + "\ngradient_accumulation_steps: 2\nmodel: {dropout: 0.1}", "on_optimizer_step", 5, 0),
    "where it saves anyway": (BASE, "on_step_begin", 3, 0),
    "where it evaluates": (BASE, "on_step_begin", 2, 0),
    "in an evaluation": (BASE, "on_prediction_step", 6, 1),
    "in an evaluation after which the best is saved": (
        BASE + "\ncheckpointing: {monitor: val/loss, save_top_k: 1, every_n_epochs: 0}",
        "on_prediction_step",
        6,
        0,
    ),
    "with averaged weights": (BASE + "\nusing_ema: true\nema: {decay: 0.5}", "on_prediction_step", 3, 0),
    "with workers": (BASE + "\ndataloader_num_workers: 1", "on_step_begin", 6, 0),
}
EPOCHS = "num_train_epochs: 3\nlogging_strategy: epoch\nsave_strategy: epoch\neval_strategy: epoch\n"
EPOCHS += "early_stopping: {monitor: val/loss, patience: 5, check_on_train_epoch_end: true}"


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_told_to_stop_and_gone_on_with(run, monkeypatch, capsys, name):
    text, event, step, after = CASES[name]
    truth = weights(run(text, out="whole"))
    with told(monkeypatch, event, step, after=after) as seen:
        code = leaves(run, text, out="parts")
    said = capsys.readouterr().out
    parts = run.folder / "parts"
    assert seen and code == 75, said
    newest = checkpoints(parts)[-1]
    assert f"preempted by SIGTERM at step {newest.name[11:]}: saved {newest.name}" in said.splitlines()[-1]
    assert manifest.verify(newest) is None and int(newest.name[11:]) in (step, step + 1)
    again = run(text, out="parts", resume_from_checkpoint="auto")
    assert all(torch.equal(value, truth[key]) for key, value in weights(again).items())
    assert logged(parts) == logged(run.folder / "whole")
    assert [path.name for path in checkpoints(parts)] == [path.name for path in checkpoints(run.folder / "whole")]
    assert not list(parts.glob(".*-*")), "something half-made is left"


@pytest.mark.slow
@pytest.mark.parametrize("event", ["on_step_begin", "on_step_end", "on_prediction_step", "on_epoch_begin"])
def test_at_the_end_of_an_epoch(run, monkeypatch, event):
    """Its log line, evaluation, checkpoint and the checks on them come once, whichever of them was the last to be."""
    truth = run(EPOCHS, out="whole")
    steps = truth.state.max_steps // 3
    at = {"on_step_begin": steps - 1, "on_epoch_begin": steps}.get(event, steps)
    with told(monkeypatch, event, at):
        assert leaves(run, EPOCHS, out="parts") == 75
    again = run(EPOCHS, out="parts", resume_from_checkpoint="auto")
    assert all(torch.equal(value, weights(truth)[key]) for key, value in weights(again).items())
    assert logged(run.folder / "parts") == logged(run.folder / "whole")
    names = [path.name for path in checkpoints(run.folder / "whole")]
    assert [path.name for path in checkpoints(run.folder / "parts")] == names


@pytest.mark.slow
def test_in_the_last_evaluation(run, monkeypatch):
    """The last step is done, its evaluation is not: the run goes on with it."""
    text = BASE.replace("max_steps: 11", "max_steps: 6")
    truth = weights(run(text, out="whole"))
    with told(monkeypatch, "on_prediction_step", 6):
        assert leaves(run, text, out="parts") == 75
    again = run(text, out="parts", resume_from_checkpoint="auto")
    assert all(torch.equal(value, truth[key]) for key, value in weights(again).items())
    assert logged(run.folder / "parts") == logged(run.folder / "whole")


@pytest.mark.slow
def test_stopped_again_and_again(run, monkeypatch):
    truth = weights(run(BASE, out="whole"))
    for number, step in ((signal.SIGUSR1, 1), (signal.SIGINT, 2), (signal.SIGTERM, 6), (signal.SIGUSR1, 7)):
        with told(monkeypatch, "on_step_begin", step, number):
            assert leaves(run, BASE, out="parts", resume_from_checkpoint="auto") == 75
    again = run(BASE, out="parts", resume_from_checkpoint="auto")
    assert all(torch.equal(value, truth[key]) for key, value in weights(again).items())
    assert logged(run.folder / "parts") == logged(run.folder / "whole")


def test_before_the_first_step(run, monkeypatch, capsys):
    """While it is set up there is nothing to save: it leaves at once, and writes nothing."""
    monkeypatch.setattr("train.build_trainer", lambda *arguments: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(9))
    assert leaves(run, BASE) == 75
    assert "preempted by SIGTERM before the first step" in capsys.readouterr().out
    assert not (run.folder / "out").exists()


def test_in_the_evaluation_before_the_first_step(run, monkeypatch, capsys):
    text = "eval_on_start: true\nmax_steps: 2\nlogging_steps: 1"
    with told(monkeypatch, "on_prediction_step", 0):
        assert leaves(run, text) == 75
    assert "before the first step" in capsys.readouterr().out and not checkpoints(run.folder / "out")
    run(text, resume_from_checkpoint="auto")
    assert [line["step"] for line in logged(run.folder / "out") if "eval_loss" in line].count(0) == 1


def test_while_it_is_imported():
    """A slow file system takes seconds for that: told to stop, it says what it says later."""
    code = (
        "import os, runpy, signal, sys\n"
        "class Told:\n"
        "    def find_spec(self, name, *more):\n"
        "        if name == 'loader.command_line.entry': os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.meta_path.insert(0, Told())\n"
        "runpy.run_path('train.py', run_name='__main__')\n"
    )
    for rank in ("0", "1"):
        environment = {**os.environ, "RANK": rank}
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 75 and not done.stderr
        assert ("preempted by SIGTERM before the first step: the same command" in done.stdout) == (rank == "0")


def test_handlers_are_gone_after_the_run(run):
    before = [signal.getsignal(each) for each in preemption.SIGNALS]
    run("max_steps: 1")
    assert [signal.getsignal(each) for each in preemption.SIGNALS] == before


def test_a_signal_in_another_thread_changes_nothing():
    with preemption.Signals() as signals, signals.deferred():
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signals.received == "SIGUSR1"
        os.kill(os.getpid(), signal.SIGTERM)  # told twice: nothing more
    with pytest.raises(preemption.Preempted, match="SIGTERM"):
        signals.check()


@pytest.mark.parametrize("between", [(), (signal.SIGTERM, signal.SIGUSR1)])
def test_interrupted_twice_leaves_at_once(between):
    code = (
        "import os, signal, time; from trainer.preemption import Signals\n"
        "with Signals() as s, s.deferred():\n"
        "    print('ready', flush=True)\n"
        "    for _ in range(100): time.sleep(0.1)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        child.stdout.readline()
        for number in (signal.SIGINT, *between):
            child.send_signal(number)
            time.sleep(0.2)
        assert child.poll() is None
        child.send_signal(signal.SIGINT)
        assert child.wait(5) == 130 and b"interrupted twice" in child.stderr.read()
    finally:
        child.kill()


class Pids(torch.utils.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        time.sleep(0.02)
        return os.getpid()


@pytest.mark.slow
def test_workers_outlive_the_signal_that_their_whole_group_gets():
    loader = DataLoader(Pids(), batch_size=4, num_workers=1, worker_init_fn=preemption.IgnoringSignals(None))
    batches = iter(loader)
    worker = int(next(batches)[0])
    for name in ("TERM", "INT", "USR1"):
        subprocess.run(["kill", f"-{name}", str(worker)], check=True)  # by another process than the one it works for
    assert sum(1 for _ in batches) == 15


def test_who_made_a_worker_may_end_it():
    """Else a process whose worker hangs would never come to its end."""
    loader = DataLoader(Pids(), batch_size=4, num_workers=1, worker_init_fn=preemption.IgnoringSignals(None))
    batches = iter(loader)
    next(batches)
    (worker,) = batches._workers
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0


@pytest.mark.slow
def test_a_worker_that_nobody_waits_for_does_not_keep_a_process_alive(tmp_path):
    (tmp_path / "hang.py").write_text(
        "import time, torch\n"
        "from trainer.preemption import IgnoringSignals\n"
        "class Hangs(torch.utils.data.Dataset):\n"
        "    def __len__(self): return 8\n"
        "    def __getitem__(self, index):\n"
        "        time.sleep(3600 if index else 0)\n"
        "        return index\n"
        "loader = torch.utils.data.DataLoader(Hangs(), num_workers=1, worker_init_fn=IgnoringSignals(None))\n"
        "batches = iter(loader); next(batches)\n"
        "print('leaving', flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, str(tmp_path / "hang.py")], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0 and "leaving" in done.stdout


@pytest.mark.slow
def test_stopped_at_its_end_and_made_longer(run, monkeypatch):
    """What had ended the run then does not end the longer one."""
    text = BASE.replace("max_steps: 11", "max_steps: 6")
    truth = weights(run(BASE, out="whole"))
    with told(monkeypatch, "on_step_end", 6):
        assert leaves(run, text, out="parts") == 75
    again = run(BASE, out="parts", resume_from_checkpoint="auto")
    assert again.state.global_step == 11
    assert all(torch.equal(value, truth[key]) for key, value in weights(again).items())
    assert logged(run.folder / "parts")[:-1] == logged(run.folder / "whole")[:-1]


@pytest.mark.slow
def test_stopped_early_and_told_to_stop_and_given_more_patience(run, monkeypatch):
    stopping = "early_stopping: {monitor: val/loss, mode: max, patience: PATIENCE}\neval_steps: 2\nmax_steps: 9"
    with told(monkeypatch, "on_evaluate", 4):
        assert leaves(run, stopping.replace("PATIENCE", "1"), out="parts") == 75
    again = run(stopping.replace("PATIENCE", "9"), out="parts", resume_from_checkpoint="auto", resume_changed="allow")
    assert again.state.global_step == 9


@pytest.mark.slow
def test_a_save_at_an_epochs_last_step_is_kept(run, monkeypatch):
    text = "save_strategy: steps\nsave_steps: 3\nmax_steps: 7\ncheckpointing: {every_n_epochs: 0, save_last: false}"
    run(text, out="whole")
    with told(monkeypatch, "on_step_end", 3):
        assert leaves(run, text, out="parts") == 75
    run(text, out="parts", resume_from_checkpoint="auto")
    assert run.checkpoints("parts") == run.checkpoints("whole") == [3, 6, 7]


@pytest.mark.slow
def test_it_says_how_to_go_on(run, monkeypatch, capsys):
    for options, how in (
        ({}, "go on with --resume_from_checkpoint auto"),
        ({"resume_from_checkpoint": "auto"}, "same"),
    ):
        with told(monkeypatch, "on_step_begin", 2):
            assert leaves(run, BASE, out=f"a{len(options)}", **options) == 75
        assert how in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.slow
def test_the_best_checkpoint_is_damaged(run, capsys):
    """Its weights are lost, the run is not: one line, and the last step's model."""
    text = "load_best_model_at_end: true\nmetric_for_best_model: eval_loss\ngreater_is_better: true\n"
    text += "save_strategy: steps\nsave_steps: 2\neval_steps: 2\nmax_steps: 6"
    run(text.replace("max_steps: 6", "max_steps: 4"))
    best = json.loads((run.folder / "out/checkpoint-4/trainer_state.json").read_text())["best_model_checkpoint"]
    assert not best.endswith("checkpoint-4")
    (Path(best) / "model.safetensors").write_bytes(b"x")
    trainer = run(text, resume_from_checkpoint="auto")
    assert trainer.state.global_step == 6 and "the best, has a truncated model.safetensors" in capsys.readouterr().err
    run(text, resume_from_checkpoint="auto")  # nothing is left to train
