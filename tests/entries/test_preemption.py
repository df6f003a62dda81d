"""Signals before, during and after training; a preempted run saves, exits with 75 and can be resumed.

test_any_moment.py tests that a resumed run ends like an uninterrupted one.
"""

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
from run_results import same
from torch.utils.data import DataLoader

from loader.command_line.entry import command_line
from storage.checkpoints import checkpoints
from trainer import preemption
from trainer.callbacks.hooks import Hooks
from trainer.run_differences import metric_differences

ROOT = Path(__file__).resolve().parent.parent.parent


@contextlib.contextmanager
def signalled(monkeypatch, event, step, number=signal.SIGTERM, after=0):
    """Send a signal to this process at a callback's event of a step, at the `after`-th event from 0."""
    seen = []
    original = getattr(Hooks, event)

    def handler(self, args, state, control, **kwargs):
        if state.global_step == step:
            seen.append(step)
            if len(seen) == after + 1:
                os.kill(os.getpid(), number)
        return original(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Hooks, event, handler)
        yield seen


def exit_code(run, *arguments, **options):
    """The exit code of a run that is preempted."""
    with pytest.raises(SystemExit) as error:
        command_line(run, *arguments, **options)
    return error.value.code


BASE = "logging_steps: 2\nsave_strategy: steps\nsave_steps: 4\neval_steps: 3\nmax_steps: 11"


def test_before_the_first_step(run, monkeypatch, capsys):
    """During setup there is nothing to save: the process exits at once and writes nothing."""
    monkeypatch.setattr("train.build_trainer", lambda *arguments: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(9))
    assert exit_code(run, BASE) == 75
    assert "preempted by SIGTERM before the first step" in capsys.readouterr().out
    assert not (run.folder / "out").exists()


@pytest.mark.slow
def test_in_the_evaluation_before_the_first_step(run, monkeypatch, capsys):
    text = "eval_on_start: true\nmax_steps: 2\nlogging_steps: 1"
    with signalled(monkeypatch, "on_prediction_step", 0):
        assert exit_code(run, text) == 75
    assert "before the first step" in capsys.readouterr().out and not checkpoints(run.folder / "out")
    run(text, resume_from_checkpoint="auto")
    assert list(run.log("eval_loss")).count(0) == 1


@pytest.mark.slow
def test_during_imports():
    code = (
        "import os, runpy, signal, sys\n"
        "class Signals:\n"
        "    def find_spec(self, name, *more):\n"
        "        if name == 'loader.command_line.entry': os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.meta_path.insert(0, Signals())\n"
        "runpy.run_path('train.py', run_name='__main__')\n"
    )
    for rank in ("0", "1"):
        environment = {**os.environ, "RANK": rank}
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 75 and not done.stderr
        assert ("preempted by SIGTERM before the first step: the same command" in done.stdout) == (rank == "0")


@pytest.mark.slow
def test_signal_handlers_are_restored_after_the_run(run):
    before = [signal.getsignal(each) for each in preemption.SIGNALS]
    run("max_steps: 1")
    assert [signal.getsignal(each) for each in preemption.SIGNALS] == before


def test_the_first_signal_counts():
    with preemption.Signals() as signals, signals.deferred():
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signals.received == "SIGUSR1"
        os.kill(os.getpid(), signal.SIGTERM)  # the second one changes nothing
    with pytest.raises(preemption.Preempted, match="SIGTERM"):
        signals.check()


@pytest.mark.parametrize("between", [(), (signal.SIGTERM, signal.SIGUSR1)])
def test_a_second_interrupt_exits_at_once(between):
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
def test_workers_survive_a_signal_to_their_process_group():
    loader = DataLoader(Pids(), batch_size=4, num_workers=1, worker_init_fn=preemption.IgnoringSignals(None))
    batches = iter(loader)
    worker = int(next(batches)[0])
    for name in ("TERM", "INT", "USR1"):
        subprocess.run(["kill", f"-{name}", str(worker)], check=True)  # sent by a process that is not the parent
    assert sum(1 for _ in batches) == 15


@pytest.mark.slow
def test_the_parent_can_terminate_a_worker():
    """Otherwise a process with a hanging worker would never end."""
    loader = DataLoader(Pids(), batch_size=4, num_workers=1, worker_init_fn=preemption.IgnoringSignals(None))
    batches = iter(loader)
    next(batches)
    (worker,) = batches._workers
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0


@pytest.mark.slow
def test_a_hanging_worker_does_not_keep_the_process_alive(tmp_path):
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
def test_preempted_at_its_last_step_and_made_longer(run, monkeypatch):
    """The end of the shorter run does not end the longer one."""
    text = BASE.replace("max_steps: 11", "max_steps: 6")
    whole = run(BASE, out="whole")
    with signalled(monkeypatch, "on_step_end", 6):
        assert exit_code(run, text, out="parts") == 75
    again = run(BASE, out="parts", resume_from_checkpoint="auto")
    assert same(again, whole) and metric_differences(run.folder / "whole", run.folder / "parts") == []


@pytest.mark.slow
def test_preempted_at_an_early_stop_and_given_more_patience(run, monkeypatch):
    stopping = "early_stopping: {monitor: val/loss, mode: max, patience: PATIENCE}\neval_steps: 2\nmax_steps: 9"
    with signalled(monkeypatch, "on_evaluate", 4):
        assert exit_code(run, stopping.replace("PATIENCE", "1"), out="parts") == 75
    again = run(stopping.replace("PATIENCE", "9"), out="parts", resume_from_checkpoint="auto", resume_changed="allow")
    assert again.state.global_step == 9


@pytest.mark.slow
def test_a_checkpoint_at_an_epochs_last_step_is_kept(run, monkeypatch):
    text = "save_strategy: steps\nsave_steps: 3\nmax_steps: 7\ncheckpointing: {every_n_epochs: 0, save_last: false}"
    run(text, out="whole")
    with signalled(monkeypatch, "on_step_end", 3):
        assert exit_code(run, text, out="parts") == 75
    run(text, out="parts", resume_from_checkpoint="auto")
    assert run.checkpoints("parts") == run.checkpoints("whole") == [3, 6, 7]


@pytest.mark.slow
def test_the_output_says_how_to_resume(run, monkeypatch, capsys):
    for options, how in (({}, "--resume_from_checkpoint auto"), ({"resume_from_checkpoint": "auto"}, "same")):
        with signalled(monkeypatch, "on_step_begin", 2):
            assert exit_code(run, BASE, out=f"a{len(options)}", **options) == 75
        assert how in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.slow
def test_a_damaged_best_checkpoint(run, capsys):
    """The final model is that of the last step."""
    text = "load_best_model_at_end: true\nmetric_for_best_model: eval_loss\ngreater_is_better: true\n"
    text += "save_strategy: steps\nsave_steps: 2\neval_steps: 2\nmax_steps: 6"
    run(f"{text}\nmax_steps: 4")
    best = json.loads((run.folder / "out/checkpoint-4/trainer_state.json").read_text())["best_model_checkpoint"]
    assert not best.endswith("checkpoint-4")
    (Path(best) / "model.safetensors").write_bytes(b"x")
    trainer = run(text, resume_from_checkpoint="auto")
    assert trainer.state.global_step == 6 and "truncated model.safetensors" in capsys.readouterr().err
    run(text, resume_from_checkpoint="auto")  # nothing is left to train
