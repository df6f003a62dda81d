"""Sweeps: how runs are started, how they end, what a second start does. `train.py` is `stand_in_training.py`."""

import json
import os
import signal
import subprocess
import sys

import pytest
from signal_files import walk, write_npz
from stand_in_sweeps import Sweep, is_alive, wait_for

import train
from loader.command_line.entry import command_line
from loader.sweep.space import Space

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tmp_path, monkeypatch, in_root):
    return Sweep(tmp_path, monkeypatch)


def test_each_run_has_its_folder_and_its_values(run):
    assert run("seed=1,2", "optimizer_builder=adamw,adafactor", "--objective", "val/loss") == 0
    for number, settings in enumerate(
        (("seed=1", "adamw"), ("seed=1", "adafactor"), ("seed=2", "adamw"), ("seed=2", "adafactor"))
    ):
        [words] = run.calls(number)
        assert {settings[0], f"optimizer_builder={settings[1]}", f'output_dir="{run.out}/{number}"'} <= set(words)
        assert "-m" not in words and "--objective" not in words
    assert [row["outcome"] for row in run.rows()] == ["done"] * 4


def test_the_table_has_the_best_value_of_each_run(run, capfd):
    """eval_loss of the stand-in is |log10(rate) + 3| + 1 / step."""
    assert run("learning_rate=1e-5,1e-2,1e-3", "seed=7") == 0
    rows = run.rows()
    assert list(rows[0]) == ["run", "outcome", "learning_rate", "eval_loss", "best_step", "seconds", "folder"]
    assert [float(row["eval_loss"]) for row in rows] == pytest.approx([2.25, 1.25, 0.25])
    assert [(row["run"], row["learning_rate"], row["best_step"], row["folder"]) for row in rows] == [
        (str(number), rate, "4", str(run.out / str(number))) for number, rate in enumerate(("1e-5", "1e-2", "1e-3"))
    ]
    assert [float(row["seconds"]) for row in rows] == [round(job["seconds"], 1) for job in run.recorded()]
    lines = capfd.readouterr().out.splitlines()
    (best,) = [number for number, line in enumerate(lines) if line.startswith("best run: ")]
    command = lines[best + 1]
    assert lines[best].startswith("best run: 2,") and "learning_rate=1e-3" in command and str(run.out / "2") in command


def test_more_is_better_if_the_user_says_so(run, capfd):
    words = ("learning_rate=1e-5,1e-3", "--objective", "eval_loss", "--objective_mode", "max")
    assert run(*words) == 0
    assert [(float(row["eval_loss"]), row["best_step"]) for row in run.rows()] == [(3, "1"), (1, "1")]
    assert "best run: 0," in capfd.readouterr().out


def test_a_metric_declares_its_direction(run, capfd):
    """More `improvement` is better, the metric of signals says; the stand-in logs the negative loss under that name."""
    data = f"{{path: {write_npz(run.folder / 'a.npz', walk(1, 600))}, target: values, window: 16}}"
    run.common = ["task_name=signals", f"dataset={data}", "model={name: wavenet, blocks: 1, layers: 3}"]
    assert run("learning_rate=1e-5,1e-3", "--objective", "val/improvement") == 0
    assert [float(row["val/improvement"]) for row in run.rows()] == pytest.approx([-2.25, -0.25])
    assert "best run: 1," in capfd.readouterr().out
    assert run("learning_rate=1e-5,1e-3", "--objective", "beauty") == 2
    assert "--objective_mode" in capfd.readouterr().err


def test_failures_stop_no_other_run_and_a_second_start_repeats_them_alone(run):
    assert run("seed=1,2,3", codes={"0": -9, "1": 2}) == 1
    assert [len(run.calls(number)) for number in range(3)] == [1, 1, 1]
    assert [row["outcome"] for row in run.rows()] == ["killed by SIGKILL", "failed, exit code 2", "done"]
    assert run("seed=1,2,3") == 0
    assert [len(run.calls(number)) for number in range(3)] == [2, 2, 1]
    first, second = run.calls(1)
    assert second == [*first, "resume_from_checkpoint=auto"]
    assert run("seed=1,2,3") == 0 and len(run.calls(1)) == 2


def test_a_preempted_run_stops_the_sweep(run):
    assert run("seed=1,2,3", codes={"1": 75}) == 75
    assert [len(run.calls(number)) for number in range(3)] == [1, 1, 0]
    assert run("seed=1,2,3", "resume_from_checkpoint=auto") == 2  # other words are another sweep
    assert run("seed=1,2,3") == 0
    assert [len(run.calls(number)) for number in range(3)] == [1, 2, 1]


def test_users_own_resume_setting_stays(run):
    assert run("seed=1,2", "--resume_from_checkpoint", "auto", codes={"0": 1}) == 1
    assert run("seed=1,2", "--resume_from_checkpoint", "auto") == 0
    first, second = run.calls(0)
    assert first == second


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["seed=1,,2"], "seed=1,,2"),
        (["seed=1,x"], "seed=x"),
        (["output_dir=a,b"], "output_dir"),
        (["seed=1,2", "checkpointing={dirpath: /x/y}"], "checkpointing.dirpath"),
        (["seed=1,2", "logging_dir=/x/y"], "logging_dir"),
        (["seed=interval(1,2)"], "--sampler random"),
        (["learning_rate=interval(-2,-1)", "--sampler", "random", "--trials", "3"], "learning_rate"),
        (["learning_rate=interval(-1,2)", "--sampler", "optuna", "--trials", "3"], "learning_rate=-1"),
        (["seed=1,2", "--trials", "3"], "--trials 3"),
        (["seed=1,2", "--sampler", "random"], "--trials N"),
        (["seed=1,2", "--sampler", "random", "--trials", "3"], "2 combinations"),
        (["seed=1,2", "--sampler", "random", "--trials", "0"], "--trials 0"),
        (["seed=1,2", "--pruner", "none"], "--pruner none"),
        (["seed=1,2", "--slurm=--time=1"], "--slurm --time=1"),
        (["seed=1,2", "--sampler", "optuna", "--trials", "2", "--launcher", "slurm"], "optuna"),
        (["seed=1,2", "--parallel", "0"], "--parallel 0"),
    ],
)
def test_a_sweep_that_cannot_run_starts_nothing(run, capfd, words, value):
    assert run(*words) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: ") and value in line
    assert not run.out.exists()


def test_every_flag_of_a_sweep_needs_a_sweep(run, capfd):
    for name, value in (("trials", "3"), ("sampler", "grid"), ("parallel", "2"), ("objective", "eval_loss")):
        with pytest.raises(SystemExit) as stopped:
            command_line(train.main, [f"--{name}", value])
        assert stopped.value.code == 2 and f"--{name}" in capfd.readouterr().err


def test_an_objective_that_no_run_logs_ends_the_sweep_after_the_first(run, capfd):
    assert run("seed=1,2,3", "--objective", "eval_los", "--objective_mode", "min") == 2
    assert "eval_los" in capfd.readouterr().err
    assert [job["exit_code"] for job in run.recorded()] == [0, None, None]


def test_a_launcher_is_refused(run, monkeypatch, capfd):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run("seed=1,2") == 2 and "-m" in capfd.readouterr().err


def test_a_folder_in_use_is_refused(run, capfd):
    from storage.lock import RunLock, machine_identity

    other = RunLock(run.out, machine=machine_identity())
    other.take()
    try:
        facts = json.loads((run.out / ".run.lock").read_text()) | {"pid": 1, "started": ""}
        (run.out / ".run.lock").write_text(json.dumps(facts))
        assert run("seed=1,2") == 2 and str(run.out) in capfd.readouterr().err
    finally:
        other.release()
    assert run.calls(0) == []


def test_a_question_is_answered_for_each_run(run, capfd):
    assert run("seed=1,2", "--print_config") == 0
    printed = capfd.readouterr().out
    assert [line.split()[1] for line in printed.splitlines() if line.startswith("seed:")] == ["1", "2"]
    assert not run.out.exists()


# ---- several at the same time ----


def most_at_once(run, count):
    moments = []
    for number in range(count):
        [start] = run.starts(number)
        ended = json.loads((run.out / str(number) / "ends.jsonl").read_text())["ended"]
        moments += [(start["began"], 1), (ended, -1)]
    running = most = 0
    for _, change in sorted(moments):
        running += change
        most = max(most, running)
    return most


def test_runs_at_the_same_time_share_devices_and_threads(run, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(12)))
    assert run("seed=1,2,3,4,5", "--parallel", "3", together=3) == 0
    assert most_at_once(run, 5) == 3
    seen = [run.starts(number)[0] for number in range(5)]
    assert sorted(start["CUDA_VISIBLE_DEVICES"] for start in seen[:3]) == ["4", "4", "GPU-7"]
    assert {start["OMP_NUM_THREADS"] for start in seen} == {"4"}
    assert all((run.out / f"{number}.log").is_file() for number in range(5))


def test_one_after_the_other_has_the_whole_machine(run, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert run("seed=1,2") == 0 and most_at_once(run, 2) == 1
    [start] = run.starts(1)
    assert (start["CUDA_VISIBLE_DEVICES"], start["OMP_NUM_THREADS"]) == ("4,GPU-7", None)


# ---- killed, and continued ----


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_run_outlives_its_sweep_and_the_same_command_continues(run, number):
    words = ("seed=1,2,3,4", "--parallel", "2")
    process = run.process(*words, step_seconds=0.5)
    # Run 0 or 1 has ended, and two others are at work.
    wait_for(lambda: len([n for n in range(4) if run.starts(n)]) >= 3 or process.poll() is not None)
    process.send_signal(number)
    code = process.wait(60)
    pids = [start["pid"] for n in range(4) for start in run.starts(n)]
    if number == signal.SIGKILL:
        wait_for(lambda: not any(map(is_alive, pids)), 30)
    else:
        assert code == 75 and not any(map(is_alive, pids))
        assert {job["exit_code"] for job in run.recorded()} <= {0, 75, None}
    finished = [n for n, job in enumerate(run.recorded()) if job["exit_code"] == 0]
    ends = {n: (run.out / str(n) / "ends.jsonl").stat().st_mtime_ns for n in finished}
    before = {n: run.log(n) for n in range(4) if (run.out / str(n) / "metrics.jsonl").exists()}
    assert finished and len(pids) < 2 * 4
    assert run(*words) == 0
    assert {n: (run.out / str(n) / "ends.jsonl").stat().st_mtime_ns for n in finished} == ends
    for n in range(4):
        assert len(run.starts(n)) == 1 if n in finished else len(run.starts(n)) <= 2
        assert list(run.log(n)) == [1, 2, 3, 4]  # a continued run repeats no step
        assert run.starts(n)[-1]["first"] == (1 if n in finished else len(before.get(n, ())) + 1)


def test_a_sweep_waits_for_a_run_that_an_earlier_start_has_left(run, capfd):
    """The child of a sweep that was killed may still save; its folder is not entered before it has left."""
    from storage.lock import RunLock

    code = f"import sys; sys.path[:0]=[{str(train.__file__.rpartition('/')[0])!r}]\n"
    code += "import pathlib, time\nfrom storage.lock import RunLock\n"
    code += f"with RunLock(pathlib.Path({str(run.out / '0')!r})):\n    print(1, flush=True)\n    time.sleep(1)\n"
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    other.stdout.readline()
    with pytest.raises(ValueError, match=str(other.pid)):
        RunLock(run.out / "0").check()
    assert run("seed=1,2") == 0 and other.wait() == 0
    assert "waiting: " in capfd.readouterr().out and len(run.starts(0)) == 1


# ---- random ----


def test_random_runs_are_reproducible_and_may_grow(run):
    words = ("learning_rate=tag(log, interval(1e-5,1e-1))", "seed=1,2", "--sampler", "random", "--sampler_seed", "5")
    assert run(*words, "--trials", "2") == 0
    assert run(*words, "--trials", "4", "--parallel", "4") == 0
    assert [len(run.starts(number)) for number in range(4)] == [1, 1, 1, 1]
    space = Space.read([word for word in words if "=" in word])
    chosen = [next_one for next_one, _ in zip(space.random(5), range(4), strict=False)]
    assert [(row["learning_rate"], row["seed"]) for row in run.rows()] == chosen
    assert run(*words, "--trials", "4", "--sampler_seed", "6") == 2
