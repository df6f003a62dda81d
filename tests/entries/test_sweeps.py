"""Sweeps of real runs: killed and continued, pruned, and their table against the runs' own logs."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from run_results import metrics, same

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = pytest.mark.slow


def command(words, *more):
    return [sys.executable, "train.py", "-m", *words, *more]


def swept(words, *more):
    return subprocess.run(command(words, *more), cwd=ROOT, capture_output=True, text=True, timeout=900)


def rows_of(out):
    with open(out / "sweep.csv", newline="") as file:
        return list(csv.DictReader(file))


def runs_of(out):
    try:
        return json.loads((out / "sweep.json").read_text())["runs"]
    except FileNotFoundError:
        return []


def test_a_killed_sweep_goes_on_where_each_run_was(run):
    """SIGKILL of the sweep: run 0 is done, run 1 has checkpoints."""
    lengths = (4, 240)
    words = run.words("eval_steps: 2\nsave_strategy: steps\nsave_steps: 2\nsave_total_limit: 2\nlogging_steps: 1\n")
    words += ["max_steps=4,240", "--parallel", "2"]
    out = run.folder / "out"
    process = subprocess.Popen(command(words), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 600
    while not ([job["exit_code"] for job in runs_of(out)][:1] == [0] and list(out.glob("1/checkpoint-*"))):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    written = {path: path.stat().st_mtime_ns for path in (out / "0").iterdir() if path.is_file()}
    done = swept(words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path: path.stat().st_mtime_ns for path in written} == written
    log = (out / "1.log").read_text()
    assert "resum" in log and "checkpoint-" in log
    for number, length in enumerate(lengths):
        assert [*metrics(out / str(number), "loss")] == list(range(1, length + 1))
    run(f"eval_steps: 2\nmax_steps: {lengths[1]}\n", "uninterrupted")
    assert same(out / "1", run.folder / "uninterrupted")
    for number, row in enumerate(rows_of(out)):
        scores = metrics(out / str(number), "eval_loss")
        best = min(scores, key=scores.get)
        assert (row["outcome"], row["max_steps"]) == ("done", str(lengths[number]))
        assert (float(row["eval_loss"]), int(row["best_step"])) == (scores[best], best)


def test_optuna_ends_a_run_that_is_worse_than_the_best(run):
    """Successive halving lets the second run go on only if it is better than the first at the first evaluation."""
    import optuna

    words = run.words("eval_steps: 5\nmax_steps: 300\nlogging_steps: 5\nsave_strategy: steps\nsave_steps: 100\n")
    words += ["learning_rate=tag(log, interval(1e-9,1e-2))", "--sampler", "optuna", "--trials", "4"]
    done = swept(words, "--pruner", "halving", "--sampler_seed", "0")
    out = run.folder / "out"
    assert done.returncode == 0, done.stdout + done.stderr
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{out}/study.db")
    scores = [metrics(out / str(number), "eval_loss") for number in range(4)]
    outcomes = [row["outcome"] for row in rows_of(out)]
    assert "pruned" in outcomes and set(outcomes) <= {"done", "pruned"} and outcomes[0] == "done"
    for number, (trial, outcome) in enumerate(zip(study.trials, outcomes, strict=True)):
        is_pruned = outcome == "pruned"
        assert trial.state.name == ("PRUNED" if is_pruned else "COMPLETE")
        assert trial.intermediate_values.items() <= scores[number].items()
        assert (max(scores[number]) < 300) == is_pruned == (not (out / str(number) / "manifest.json").exists())
        if is_pruned:
            assert scores[number][5] > min(each[5] for each in scores[:number])
            assert list((out / str(number)).glob("checkpoint-*"))  # a pruned run is saved as a preempted one
        else:
            assert trial.value == min(scores[number].values())
    best = min(range(4), key=lambda number: min(scores[number].values()))
    assert f"best run: {best}," in done.stdout
