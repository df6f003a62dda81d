"""`scripts/slurm/train.sbatch` without Slurm: what it refuses before anything starts, and what a dry run prints."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
STAND_IN = HERE / "stand_in.py"
RECORD = """JobId=7 JobName=keel
     Nodes=node1 CPU_IDs=0-3 Mem=0 GRES=gpu:h100:{first}(IDX:0-4)
     Nodes=node2 CPU_IDs=0-3 Mem=0 GRES=gpu:h100:{second}(IDX:0-2)
"""


class Job:
    """Runs the script with the environment of a job, and Slurm's commands as files in `folder`."""

    def __init__(self, folder):
        self.folder = folder
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "KEEL_", "MASTER_"))},
            "PATH": f"{folder}:{os.environ['PATH']}",
            "PYTHON": str(STAND_IN),
            "INTERPRETER": sys.executable,
            "STAND_IN": "exit 0",
            "STARTS": str(folder / "starts"),
            "SLURM_SUBMIT_DIR": str(ROOT),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "node[1-2]",
        }
        self.command("scontrol", 'case "$*" in *hostnames*) echo node1 ;; esac')
        self.command("squeue", "exit 1")
        self.command("srun", "exit 99")

    def command(self, name, text):
        file = self.folder / name
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(0o755)

    def __call__(self, *words, script=ROOT / "scripts/slurm/train.sbatch", **variables):
        environment = {**self.environment, **{key: str(value) for key, value in variables.items()}}
        environment = {key: value for key, value in environment.items() if value != "None"}
        command = ["bash", str(script), *words]
        return subprocess.run(command, env=environment, cwd=self.folder, capture_output=True, text=True, timeout=60)

    def starts(self):
        file = self.folder / "starts"
        return [json.loads(line)["words"] for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def job(tmp_path):
    return Job(tmp_path)


def test_a_configuration_error_is_in_the_log_and_nothing_is_started(job):
    done = job("--seed", "x", STAND_IN="refuse", SLURM_JOB_NUM_NODES=2, SLURM_GPUS_ON_NODE=4)
    assert (done.returncode, job.starts()) == (2, [])
    assert done.stderr == "error: wrong for 8 processes\n"


def test_the_real_check_refuses_a_typo(job):
    done = job("--lerning_rate", "1", PYTHON=sys.executable)
    assert done.returncode == 2 and done.stderr.count("error:") == 1 and "--learning_rate" in done.stderr


def test_a_configuration_that_passes_is_trained(job):
    done = job("--seed", "3")
    assert (done.returncode, job.starts()) == (0, [["--seed", "3", "--resume_from_checkpoint", "auto"]])


def test_the_interpreter_may_be_a_command_of_several_words(job):
    done = job("--seed", "3", PYTHON=f"env INSIDE=1 {STAND_IN}")
    assert (done.returncode, job.starts()) == (0, [["--seed", "3", "--resume_from_checkpoint", "auto"]])
    job.command("srun", 'while [ "$1" != bash ]; do shift; done; SLURM_NODEID=1 exec "$@"')
    (job.folder / "starts").unlink()
    words = {"SLURM_JOB_NUM_NODES": 2, "SLURM_GPUS_ON_NODE": 2, "PYTHON": f"env INSIDE=1 {STAND_IN}"}
    assert job("--seed", "3", **words).returncode == 0
    launcher, training = job.starts()
    assert launcher[:2] == ["--machine_rank", "1"] and training[:2] == ["--seed", "3"]
    assert launcher[launcher.index("--num_processes") + 1] == "4"
    assert "there is no nothing" in job(PYTHON="nothing at all").stderr


@pytest.mark.parametrize(("first", "second", "variables", "code"), [
    (5, 3, {}, 2), (4, 4, {}, 0), (5, 3, {"KEEL_PROCESSES_PER_NODE": 3}, 0),
])  # fmt: skip
def test_nodes_with_different_numbers_of_gpus_are_refused(job, first, second, variables, code):
    record = RECORD.format(first=first, second=second)
    job.command("scontrol", f"case \"$*\" in *hostnames*) echo node1 ;; *) cat <<'END'\n{record}END\n;; esac")
    done = job(SLURM_JOB_NUM_NODES=2, SLURM_GPUS_ON_NODE=first, DRY_RUN=1, **variables)
    assert done.returncode == code and ("3, 5" in done.stderr) == (code == 2), done.stderr
    assert job.starts() == []


@pytest.mark.parametrize("inside", [True, False])
def test_a_dry_run_prints_the_command_and_trains_nothing(job, inside):
    """In a job and without Slurm; arguments arrive as they were."""
    slurm = {} if inside else {"SLURM_JOB_ID": None, "SLURM_SUBMIT_DIR": None}
    done = job("--set", "a=b c", "--seed", "3", DRY_RUN=1, **slurm)
    train = [str(STAND_IN), f"{ROOT}/train.py", "--set", "a=b c", "--seed", "3", "--resume_from_checkpoint", "auto"]
    assert (done.returncode, shlex.split(done.stdout), job.starts()) == (0, train, [])
    refused = job("--seed", "3", SLURM_JOB_ID=None)
    assert refused.returncode == 2 and "DRY_RUN=1" in refused.stderr
    together = job("--seed", "3", DRY_RUN=1, SLURM_JOB_NUM_NODES=2, SLURM_GPUS_ON_NODE=4)
    words = shlex.split(together.stdout)
    assert words[0] == "srun" and words[words.index("--num_processes") + 1] == "8" and job.starts() == []


def test_a_dry_run_without_slurm_prints_each_task_of_a_sweep(job):
    """With no variable of Slurm's set, and the script's `set -u`: one line per task, and the refusals of the sweep."""
    outside = {"SLURM_JOB_ID": None, "SLURM_SUBMIT_DIR": None, "SLURM_JOB_NODELIST": None, "DRY_RUN": 1}
    sweep = job.folder / "sweep.txt"
    sweep.write_text("# rates\n--learning_rate 1e-4\n\n--learning_rate 3e-4 --output_dir hot\n")
    done = job("--output_dir", "runs", PYTHON=sys.executable, KEEL_SWEEP=sweep, **outside)
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and done.stderr == "" and len(lines) == 2, done.stderr
    rates = [line[line.index("--learning_rate") + 1] for line in lines]
    folders = [[line[index + 1] for index, word in enumerate(line) if word == "--output_dir"][-1] for line in lines]
    assert rates == ["1e-4", "3e-4"] and folders == ["runs/0", "hot"]
    one = job("--output_dir", "runs", PYTHON=sys.executable, KEEL_SWEEP=sweep, SLURM_ARRAY_TASK_ID=1, **outside)
    assert one.returncode == 0 and shlex.split(one.stdout) == lines[1] and one.stderr == ""
    sweep.write_text("# nothing\n")
    assert job("--output_dir", "runs", PYTHON=sys.executable, KEEL_SWEEP=sweep, **outside).returncode == 2
    assert job("--output_dir", "runs", PYTHON=sys.executable, KEEL_SWEEP="absent.txt", **outside).returncode == 2


def test_a_dry_run_without_slurm_of_several_processes_and_of_a_container(job):
    outside = {"SLURM_JOB_ID": None, "SLURM_SUBMIT_DIR": None, "SLURM_JOB_NODELIST": None, "DRY_RUN": 1}
    together = job("--seed", "3", KEEL_PROCESSES_PER_NODE=2, **outside)
    words = shlex.split(together.stdout)
    assert (together.returncode, together.stderr) == (0, "")
    assert words[words.index("--main_process_ip") + 1] == "localhost"
    container = job("--seed", "3", PYTHON="absent exec image.sif python", **outside)
    assert container.returncode == 0 and "absent" in container.stderr
    assert shlex.split(container.stdout)[:5] == ["absent", "exec", "image.sif", "python", f"{ROOT}/train.py"]
    assert job("--seed", "3", PYTHON="absent exec image.sif python").returncode == 2  # in a job it is an error


def test_nodes_without_names_are_refused(job):
    job.command("scontrol", "exit 1")
    done = job("--seed", "3", SLURM_JOB_NUM_NODES=2, SLURM_GPUS_ON_NODE=2, SLURM_JOB_NODELIST=None, KEEL_ROOT=ROOT)
    assert done.returncode == 2 and "MASTER_ADDR" in done.stderr and "unbound" not in done.stderr
