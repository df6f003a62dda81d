"""`train.py -m … --launcher slurm`: what sbatch receives, what each task trains, what is submitted again."""

import csv
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from ladi_folder import write_ladi

import train
from loader.command_line.entry import command_line
from loader.command_line.parser import parse_flags
from loader.resolve.resolver import resolve

pytestmark = pytest.mark.slow

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SCRIPT = ROOT / "scripts/slurm/train.sbatch"
GRID = [("1e-3", "0"), ("1e-3", "0.1"), ("3e-4", "0"), ("3e-4", "0.1")]
SWEPT = ["learning_rate=1e-3,3e-4", "weight_decay=0,0.1"]


class Cluster:
    """Slurm's commands as files in a folder on PATH: sbatch writes down what it gets, squeue prints a given list."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.out = folder, folder / "a b%"
        self.common = [f"dataset_base_dir={write_ladi(folder / 'ladi')}", "--output_dir", str(self.out)]
        (folder / "bin").mkdir()
        monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
        note = f"import json, os, sys\nwith open('{folder}/got', 'a') as file:\n"
        note += "    print(json.dumps([sys.argv[1:], dict(os.environ)]), file=file)\n"
        self.command("sbatch", f'"{sys.executable}" -c "{note}" "$@"; echo "$(wc -l < {folder}/got);cluster"')
        self.queue()

    def command(self, name, text):
        file = self.folder / "bin" / name
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(0o755)

    def queue(self, **tasks):
        """`job_1=(0, 3)`: these tasks of the first array wait or run; Slurm has forgotten all other arrays."""
        known = [f"*--jobs={job[4:]}) printf '%s\\n' {' '.join(map(str, each))} ;;" for job, each in tasks.items()]
        self.command("squeue", f'case "$*" in {" ".join(known)} *) exit 1 ;; esac')

    def __call__(self, *words):
        with pytest.raises(SystemExit) as stopped:
            command_line(train.main, ["-m", "--launcher", "slurm", *self.common, *words])
        return stopped.value.code

    def received(self):
        lines = (self.folder / "got").read_text().splitlines() if (self.folder / "got").exists() else []
        return [json.loads(line) for line in lines]

    def finish(self, number, value):
        folder = self.out / str(number)
        folder.mkdir(exist_ok=True)
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 3, "eval_loss": value}) + "\n")
        (folder / "manifest.json").write_text("{}")


@pytest.fixture
def cluster(tmp_path, monkeypatch, in_root):
    return Cluster(tmp_path, monkeypatch)


def test_the_array_trains_each_combination_in_its_folder(cluster):
    options = ["--slurm", "--time=4:00:00 --comment='a b'", "--parallel", "2"]
    assert cluster("--seed", "3", *SWEPT, *options) == 0
    [(words, environment)] = cluster.received()
    script = words.index(str(SCRIPT))
    log = str(cluster.out).replace("%", "%%")
    options = ["--parsable", "--array=0,1,2,3%2", f"--output={log}/%a.log", "--time=4:00:00", "--comment=a b"]
    assert words[:script] == options and environment["PYTHON"] == sys.executable
    assert json.loads((cluster.out / "sweep.json").read_text())["slurm_jobs"] == ["1"]
    stand_in = {"PYTHON": str(HERE / "stand_in.py"), "INTERPRETER": sys.executable, "STAND_IN": "exit 0"}
    environment |= {**stand_in, "DRY_RUN": "1"}
    done = subprocess.run(["bash", *words[script:]], env=environment, capture_output=True, text=True)
    tasks = [shlex.split(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and len(tasks) == 4, done.stderr
    for number, (task, (rate, decay)) in enumerate(zip(tasks, GRID, strict=True)):
        given = parse_flags(task[2:])
        run = resolve(given.hyper, given.command.set, aliases=given.aliases)
        assert (run.hyper.learning_rate, run.hyper.weight_decay) == (float(rate), float(decay))
        assert (
            run.output_dir == cluster.out / str(number) and run.seed == 3 and run.hyper.resume_from_checkpoint == "auto"
        )


def test_what_is_finished_or_queued_is_not_submitted_again(cluster, capfd):
    assert cluster(*SWEPT) == 0
    cluster.finish(0, 2.0)
    cluster.finish(2, 1.0)
    cluster.queue(job_1=(1,))
    assert cluster(*SWEPT) == 0 and cluster.received()[1][0][1] == "--array=3"
    cluster.queue(job_1=(1,), job_2=(3,))
    assert cluster(*SWEPT) == 75 and len(cluster.received()) == 2
    cluster.finish(1, 3.0)
    cluster.finish(3, 4.0)
    cluster.queue()
    capfd.readouterr()
    assert cluster(*SWEPT) == 0 and len(cluster.received()) == 2
    with open(cluster.out / "sweep.csv", newline="") as file:
        rows = [(row["outcome"], float(row["eval_loss"]), row["best_step"]) for row in csv.DictReader(file)]
    assert rows == [("done", 2, "3"), ("done", 3, "3"), ("done", 1, "3"), ("done", 4, "3")]
    assert "best run: 2," in capfd.readouterr().out


def test_random_runs_are_submitted_too(cluster):
    words = ["learning_rate=tag(log, interval(1e-5,1e-2))", "--sampler", "random", "--trials"]
    assert cluster(*words, "2") == 0 and cluster(*words, "3") == 0
    first, second = (received[0][1] for received in cluster.received())
    assert (first, second) == ("--array=0,1", "--array=0,1,2")  # none of the first two has finished, or is queued
    lines = (cluster.out / "sweep.txt").read_text().splitlines()
    assert len(set(lines)) == 3 and all(line.startswith("--set learning_rate=") for line in lines)


def test_what_sbatch_refuses_is_said(cluster, capfd, monkeypatch):
    cluster.command("sbatch", "echo 'invalid partition' >&2; exit 1")
    assert cluster(*SWEPT) == 2 and "invalid partition" in capfd.readouterr().err
    monkeypatch.setenv("PATH", "/nowhere")
    assert cluster(*SWEPT) == 2 and "sbatch" in capfd.readouterr().err


def test_a_real_slurm_runs_the_array(slurm, tmp_path, monkeypatch, in_root):
    """Each task reaches train.py (a stand-in) once, with its settings."""
    more = {"PYTHON": str(HERE / "stand_in.py"), "INTERPRETER": sys.executable, "STAND_IN": "exit 0"}
    for name, value in {**slurm.environment, **more, "STARTS": str(tmp_path / "starts")}.items():
        monkeypatch.setenv(name, value)
    words = [f"dataset_base_dir={write_ladi(tmp_path / 'ladi')}", "--output_dir", str(tmp_path / "out"), *SWEPT]
    with pytest.raises(SystemExit) as stopped:
        command_line(train.main, ["-m", "--launcher", "slurm", *words])
    assert stopped.value.code == 0
    job = json.loads((tmp_path / "out/sweep.json").read_text())["slurm_jobs"][0]
    assert [slurm.over(f"{job}_{task}")["JobState"] for task in range(4)] == ["COMPLETED"] * 4
    starts = [json.loads(line)["words"] for line in (tmp_path / "starts").read_text().splitlines()]
    seen = {tuple(word for word in words if word.startswith(("learning_rate=", "weight_decay="))) for words in starts}
    assert len(starts) == 4 and seen == {(f"learning_rate={rate}", f"weight_decay={decay}") for rate, decay in GRID}
