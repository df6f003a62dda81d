"""The entries called from a program or a notebook: errors are exceptions, only the command line exits."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import SmallRuns
from transformers import TrainerCallback

import eval as evaluation
import predict
import prepare
import train
from loader.errors import ConfigError
from trainer.preemption import Preempted

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("main", "words", "part"),
    [
        (train.main, ["--lerning_rate", "1"], "--learning_rate"),
        (train.main, ["--max_steps", "0"], "max_steps"),
        (evaluation.main, ["--checkpoint", "nowhere"], "nowhere"),
        (predict.main, ["--checkpoint", "nowhere"], "nowhere"),
        (prepare.main, ["--task_name", "nowhere"], "nowhere"),
    ],
)
def test_a_configuration_error_is_raised_and_not_printed(in_root, capsys, main, words, part):
    with pytest.raises(ConfigError) as raised:
        main(words)
    assert part in raised.value.problems[0] and capsys.readouterr().err == ""


@pytest.mark.slow
def test_errors_of_data_and_of_the_trainer_are_raised_too(tmp_path):
    runs = SmallRuns(tmp_path)
    for text in ("dataset: {max_episodes: 1}", "param_groups: [{pattern: nothing, lr: 1}]"):
        with pytest.raises(ConfigError):
            runs.new(text)
    assert runs.new(max_steps=1).state.global_step == 1


class Signalled(TrainerCallback):
    """Sends this process SIGUSR1 at step 2; named in YAML."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 1:
            signal.raise_signal(signal.SIGUSR1)


@pytest.mark.slow
def test_a_preemption_is_raised(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    runs = SmallRuns(tmp_path)
    with pytest.raises(Preempted) as raised:
        runs("callbacks: [test_from_python.Signalled]", max_steps=4)
    assert (raised.value.step, raised.value.saved, runs.checkpoints()) == (2, True, [2])
    assert capsys.readouterr().out.count("preempted by SIGUSR1") == 1


@pytest.mark.slow
def test_the_command_line_exits(in_root):
    done = subprocess.run([sys.executable, "train.py", "--lerning_rate", "1"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "--learning_rate" in done.stderr
