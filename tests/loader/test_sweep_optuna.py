"""Sweeps whose settings Optuna chooses: what its study records, which runs it ends early, how a sweep goes on."""

import math
import signal
import statistics
import subprocess
import sys

import optuna
import pytest
from optuna.trial import TrialState
from stand_in_sweeps import Sweep, wait_for

from loader.schema.hyper_arguments import SweepArguments
from loader.sweep.optuna_study import OptunaStudy
from loader.sweep.space import Space

RATES = "learning_rate=tag(log, interval(1e-5,1e-1))"


@pytest.fixture
def run(tmp_path, monkeypatch, in_root):
    return Sweep(tmp_path, monkeypatch)


def trials(run):
    return optuna.load_study(study_name="sweep", storage=f"sqlite:///{run.out}/study.db").trials


@pytest.mark.slow
def test_the_study_has_what_the_runs_had_and_goes_on(run, tmp_path):
    words = (RATES, "weight_decay=0,0.1", "--sampler", "optuna", "--sampler_seed", "1", "--pruner", "none")
    assert run(*words, "--trials", "3") == 0
    assert run(*words, "--trials", "5") == 0
    assert [len(run.starts(number)) for number in range(5)] == [1] * 5
    known, rows = trials(run), run.rows()
    assert [trial.state for trial in known] == [TrialState.COMPLETE] * 5
    for number, (trial, row) in enumerate(zip(known, rows, strict=True)):
        assert trial.params == {"learning_rate": float(row["learning_rate"]), "weight_decay": row["weight_decay"]}
        assert trial.intermediate_values == run.log(number) and trial.value == min(run.log(number).values())
        assert trial.value == float(row["eval_loss"]) and 1e-5 <= trial.params["learning_rate"] <= 1e-1
        assert f"learning_rate={row['learning_rate']}" in run.calls(number)[0]
    chosen = [job["settings"] for job in run.recorded()]
    run.out = tmp_path / "uninterrupted"
    assert run(*words, "--trials", "5") == 0
    assert [job["settings"] for job in run.recorded()] == chosen
    run.out = tmp_path / "other seed"
    words = [word if word != "1" else "2" for word in words]
    assert run(*words, "--trials", "1") == 0 and run.recorded()[0]["settings"] != chosen[0]


@pytest.mark.slow
def test_a_run_that_is_worse_than_the_median_is_ended(run):
    """After five runs, one is ended whose first value is above the median of those of the complete runs before it."""
    words = (RATES, "--sampler", "optuna", "--sampler_seed", "2")
    assert run(*words, "--trials", "9", step_seconds=0.4) == 0
    outcomes = [row["outcome"] for row in run.rows()]
    firsts = [abs(math.log10(float(row["learning_rate"])) + 3) + 1 for row in run.rows()]
    complete, expected = [], []
    for value in firsts:
        is_worse = len(complete) >= 5 and value > statistics.median(complete)
        expected.append("pruned" if is_worse else "done")
        complete += [] if is_worse else [value]
    assert outcomes == expected and 1 <= expected.count("pruned") <= 3
    for number, trial in enumerate(trials(run)):
        is_pruned = expected[number] == "pruned"
        assert trial.state == (TrialState.PRUNED if is_pruned else TrialState.COMPLETE)
        assert (len(run.log(number)) < 4) == is_pruned == (run.recorded()[number]["exit_code"] == 75)
    starts = [run.starts(number) for number in range(9)]
    assert run(*words, "--trials", "9") == 0 and [run.starts(number) for number in range(9)] == starts


@pytest.mark.slow
def test_what_fails_is_known_to_the_study_and_repeated(run):
    words = (RATES, "--sampler", "optuna", "--trials", "3")
    assert run(*words, codes={"1": 1}) == 1
    assert [trial.state.name for trial in trials(run)] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert run(*words) == 0 and [len(run.starts(number)) for number in range(3)] == [1, 2, 1]
    assert [row["outcome"] for row in run.rows()] == ["done"] * 3


@pytest.mark.slow
def test_a_killed_sweep_goes_on_with_the_same_study(run):
    words = (RATES, "--sampler", "optuna", "--trials", "4", "--parallel", "2")
    process = run.process(*words, step_seconds=0.5)
    wait_for(lambda: any(run.starts(number) for number in (2, 3)) or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    process.wait()
    chosen = [job["settings"] for job in run.recorded()]
    assert run(*words) == 0
    known = trials(run)
    assert [trial.state for trial in known] == [TrialState.COMPLETE] * 4
    assert [job["settings"] for job in run.recorded()][: len(chosen)] == chosen
    for number, trial in enumerate(known):
        assert trial.intermediate_values == run.log(number) and list(run.log(number)) == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_trial_whose_run_was_not_recorded_is_used(tmp_path):
    """A kill between Optuna's record and the sweep's own; the whole number keeps its kind."""
    space = Space.read([RATES, "seed=int(interval(1,9))"])
    asked = SweepArguments(sampler="optuna", trials=3)
    chosen = OptunaStudy(tmp_path, space, asked, "min").values(0)
    later = OptunaStudy(tmp_path, space, asked, "min")
    assert later.values(0) == chosen and len(later.study.trials) == 1
    assert later.values(1) != chosen and len(later.study.trials) == 2 and chosen[1] in "123456789"


@pytest.mark.slow
def test_without_optuna_the_extra_is_named(run, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert run(RATES, "--sampler", "optuna", "--trials", "2") == 2
    assert "keel[sweep]" in capfd.readouterr().err and not run.out.exists()


@pytest.mark.slow
def test_a_sweep_imports_optuna_only_for_its_own_sampler(in_root):
    code = "import sys, train, loader.sweep.run; print({'torch', 'optuna', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
