"""Submit the runs of a sweep as one job array of `scripts/slurm/train.sbatch`."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from loader.errors import ConfigError
from loader.schema.hyper_arguments import SweepArguments
from loader.schema.keys import ROOT
from loader.sweep.jobs import Record
from loader.sweep.space import Space
from storage import manifest
from storage.atomic import write_text

FILE = "sweep.txt"
SCRIPT = ROOT / "scripts/slurm/train.sbatch"


def submit(record: Record, space: Space, asked: SweepArguments) -> tuple[int, int]:
    """Submit the runs that are neither finished nor in the queue; returns how many, and how many are in the queue.

    A run is finished when its folder has a complete final model.

    Raises:
        ConfigError: Slurm refuses the array, or is not there.
    """
    for index, job in enumerate(record.jobs):
        job.exit_code = 0 if (record.run_folder(index) / manifest.NAME).is_file() else None
    arrays = {array: queued_tasks(array) for array in record.slurm_jobs}
    record.slurm_jobs = [array for array, tasks in arrays.items() if tasks]
    queued = set().union(*arrays.values())
    tasks = [index for index, job in enumerate(record.jobs) if not job.is_finished and index not in queued]
    if tasks:
        write_text(record.folder / FILE, task_file(record))
        record.slurm_jobs.append(_sbatch(record.folder, common_words(space, record.folder), tasks, asked))
        for index in tasks:
            record.jobs[index].has_begun = True
    record.write()
    return len(tasks), len(queued)


def task_file(record: Record) -> str:
    """The lines of KEEL_SWEEP, see scripts/slurm/array_task.py: what distinguishes each task."""
    lines = [[f"{key}={value}" for key, value in job.settings.items()] for job in record.jobs]
    return "".join(f"{shlex.join(['--set', *words] if words else ['--no_multirun'])}\n" for words in lines)


def common_words(space: Space, folder: Path) -> list[str]:
    """What all tasks have: the flags, the settings with one value, and the folder, which has to be a flag there."""
    fixed = [f"{key}={option[0]}" for key, option in space.options if key not in space.varying and key != "output_dir"]
    return [*space.flags, *fixed, "--output_dir", str(folder.absolute())]


def queued_tasks(array: str) -> set[int]:
    """The tasks of an array that wait or run; none of one that Slurm has forgotten."""
    done = subprocess.run(
        ["squeue", "--noheader", "--array", "--format=%K", f"--jobs={array}"], capture_output=True, text=True
    )
    return {int(word) for word in done.stdout.split() if word.isdigit()} if done.returncode == 0 else set()


def _sbatch(folder: Path, words: list[str], tasks: list[int], asked: SweepArguments) -> str:
    """Submit the array; returns its job number."""
    limit = f"%{asked.parallel}" if "parallel" in asked.given else ""
    log = str(folder.absolute()).replace("%", "%%")
    options = [f"--array={','.join(map(str, tasks))}{limit}", f"--output={log}/%a.log", *shlex.split(asked.slurm or "")]
    environment = {"PYTHON": sys.executable, **os.environ, "KEEL_SWEEP": str(folder.absolute() / FILE)}
    try:
        done = subprocess.run(
            ["sbatch", "--parsable", *options, str(SCRIPT), *words], env=environment, capture_output=True, text=True
        )
    except FileNotFoundError as error:
        raise ConfigError("--launcher slurm needs Slurm's command sbatch, which is not here") from error
    if done.returncode:
        raise ConfigError(f"sbatch refuses the job array: {done.stderr.strip()}")
    return done.stdout.strip().partition(";")[0]
