"""A Slurm of this machine's own, two nodes on paper, set up by `slurm_node.sh` for the tests in this folder."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = ROOT / "scripts/slurm/train.sbatch"
NODE = Path(__file__).with_name("slurm_node.sh")
UNAVAILABLE = 69
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "PREEMPTED")


class Slurm:
    """Submits jobs and asks after them. `job` is what Slurm takes for one: `7`, or `7_0` of an array."""

    def __init__(self, folder):
        others = ("SLURM_", "SBATCH_", "SRUN_", "KEEL_", "MASTER_")
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(others)},
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PYTHON": sys.executable,
            "OMP_NUM_THREADS": "1",
        }

    def ask(self, *words, **more):
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=60, **more)
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout.strip()

    def submit(self, *words, options=(), script=SCRIPT, cwd, **variables):
        """The job's number; its log is `cwd/log-7` (`log-7_0`)."""
        name = "log-%A_%a" if any(option.startswith("--array") for option in options) else "log-%j"
        environment = {**self.environment, **{key: str(value) for key, value in variables.items()}}
        command = ["sbatch", "--parsable", f"--output={name}", *options, str(script), *map(str, words)]
        done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def record(self, job):
        """What `scontrol show job` says: JobState, ExitCode (`2:0`), Restarts …"""
        words = self.ask("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_until(self, true, what, seconds=120):
        end = time.monotonic() + seconds
        while not (answer := true()):
            assert time.monotonic() < end, f"not within {seconds} s: {what}"
            time.sleep(0.2)
        return answer

    def over(self, job, seconds=150):
        """Waits for a job's end; its last record."""

        def ended():
            record = self.record(job)
            return record if record["JobState"] in OVER else None

        return self.wait_until(ended, f"job {job} ends", seconds)


@pytest.fixture(scope="session")
def slurm():
    folder = Path(tempfile.mkdtemp(prefix="keel-slurm-"))
    done = subprocess.run([NODE, "start", folder], capture_output=True, text=True, timeout=600)
    try:
        if done.returncode == UNAVAILABLE:
            pytest.skip(done.stderr.strip())
        assert done.returncode == 0, done.stderr
        yield Slurm(folder)
    finally:
        subprocess.run([NODE, "stop", folder], timeout=120)
        shutil.rmtree(folder, ignore_errors=True)
