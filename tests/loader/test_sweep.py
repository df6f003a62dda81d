"""Sweeps: which runs a command line stands for, how they end, what a second start does. `train.py` is a stand-in."""

import json

import pytest
from ladi_folder import write_ladi

from loader.command_line import sweep as module
from loader.command_line.entry import command_line, run_config
from loader.command_line.sweep import choices, jobs_of

STAND_IN = """\
import json, os, pathlib, sys
words = sys.argv[1:]
folder = pathlib.Path(next(json.loads(word.partition("=")[2]) for word in words if word.startswith("output_dir=")))
folder.mkdir(parents=True, exist_ok=True)
with (folder / "calls.txt").open("a") as file:
    file.write(json.dumps(words) + "\\n")
code = json.loads((pathlib.Path(__file__).parent / "codes.json").read_text()).get(folder.name, 0)
if code < 0:
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1", ["1"]),
        ("", [""]),
        ("1,2", ["1", "2"]),
        ("[1,2],3", ["[1,2]", "3"]),
        ("{a: 1, b: [2,3]},{a: 2}", ["{a: 1, b: [2,3]}", "{a: 2}"]),
        ("'a,b',c", ["'a,b'", "c"]),
        ('"a,[b",c', ['"a,[b"', "c"]),
        ("it's,fine", ["it's,fine"]),
    ],
)
def test_values_are_split_at_commas(text, values):
    assert choices(text) == values


def test_the_runs_are_the_cartesian_product():
    words = ["a=1,2", "-m", "--set", "callbacks=a,b", "--seed", "3", "c=0", "b=x,y,z"]
    jobs = jobs_of(words)
    assert [job.settings for job in jobs] == [[f"a={a}", f"b={b}"] for a in (1, 2) for b in "xyz"]
    assert jobs[4].words == ["-m", "--set", "callbacks=a,b", "--seed", "3", "--no_multirun", "a=2", "c=0", "b=y"]


class Sweep:
    """Starts sweeps whose runs are a stand-in for train.py; `codes` has the exit codes of runs by number."""

    def __init__(self, folder, monkeypatch):
        (folder / "train.py").write_text(STAND_IN)
        monkeypatch.setattr(module, "ROOT", folder)
        self.folder, self.out, self.base = folder, folder / "out", write_ladi(folder / "ladi")

    def __call__(self, *words, codes=None):
        (self.folder / "codes.json").write_text(json.dumps(codes or {}))
        with pytest.raises(SystemExit) as stopped:
            command_line(run_config, ["-m", f"dataset_base_dir={self.base}", "--output_dir", str(self.out), *words])
        return stopped.value.code

    def calls(self, number):
        file = self.out / str(number) / "calls.txt"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


@pytest.fixture
def run(tmp_path, monkeypatch, in_root):
    return Sweep(tmp_path, monkeypatch)


def last_lines(capfd, count):
    return [line.split() for line in capfd.readouterr().out.splitlines()[-count:]]


def test_each_run_has_its_folder_and_its_values(run, capfd):
    assert run("seed=1,2", "optimizer_builder=adamw,adafactor") == 0
    for number, settings in enumerate(
        (("seed=1", "adamw"), ("seed=1", "adafactor"), ("seed=2", "adamw"), ("seed=2", "adafactor"))
    ):
        [words] = run.calls(number)
        assert {settings[0], f"optimizer_builder={settings[1]}", f'output_dir="{run.out}/{number}"'} <= set(words)
    rows = last_lines(capfd, 5)
    assert [row[0] for row in rows] == ["run", "0", "1", "2", "3"] and {row[1] for row in rows[1:]} == {"done"}
    assert rows[2][3:] == ["seed=1", "optimizer_builder=adafactor"]


def test_failures_stop_no_other_run_and_a_second_start_repeats_them_alone(run, capfd):
    assert run("seed=1,2,3", codes={"0": -9, "1": 2}) == 1
    assert [len(run.calls(number)) for number in range(3)] == [1, 1, 1]
    rows = last_lines(capfd, 3)
    assert "SIGKILL" in rows[0] and rows[1][1:5] == ["failed,", "exit", "code", "2"] and rows[2][1] == "done"
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
    ],
)
def test_a_sweep_that_cannot_run_starts_nothing(run, capfd, words, value):
    assert run(*words) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: ") and value in line
    assert not run.out.exists()


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
