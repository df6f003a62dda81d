"""`-m a=1,2 b=x,y`: a run for each combination of values, one after the other, each in a process of its own.

The runs write to OUT/0, OUT/1 …; OUT/sweep.json records how each ended, so that the same command continues a sweep.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loader.command_line.parser import split_settings
from loader.errors import ConfigError
from loader.resolve.run_config import RunConfig
from loader.schema.components import ROOT
from storage import safe_read
from storage.atomic import write_json
from storage.lock import FolderInUse, RunLock

FILE = "sweep.json"
FAILED, PREEMPTED = 1, 75
PAIRS = {"[": "]", "{": "}", "(": ")", '"': '"', "'": "'"}


@dataclass
class Job:
    """One run of a sweep.

    Attributes:
        words: Its command line, but for `output_dir`.
        settings: What distinguishes it from the others.
        exit_code: None until it has ended; negative: the signal that killed it.
    """

    words: list[str]
    settings: list[str]
    has_begun: bool = False
    exit_code: int | None = None
    seconds: float = 0.0

    @property
    def outcome(self) -> str:
        if self.exit_code is None:
            return "not finished" if self.has_begun else "not started"
        if self.exit_code < 0:
            return f"killed by {signal.Signals(-self.exit_code).name}"
        return {0: "done", PREEMPTED: "preempted"}.get(self.exit_code, f"failed, exit code {self.exit_code}")


def sweep(words: list[str], read: Callable[[list[str]], Any], asks: bool) -> int:
    """Run all combinations of a command line and return the exit code: 0 if all runs ended well.

    Args:
        read: Returns the checked RunConfig of a command line, or prints what it asks for.
        asks: Whether the command line asks for something instead of runs (`--check`).

    Raises:
        ConfigError: a run cannot be started (none is), or its folder has another sweep or is in use.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError("-m starts each run as one process; start it without torchrun or another launcher")
    jobs = jobs_of(words)
    runs = []
    for index, job in enumerate(jobs):
        if asks:
            print(f"# run {index}: {_shown(job)}")
        runs.append(_read(job, read))
    if asks:
        return 0
    folder = _folder_of(runs)
    resumes = runs[0].was_set("resume_from_checkpoint")
    is_stopped = False
    try:
        with RunLock(folder):
            jobs = _continued(folder, jobs)
            for index, job in enumerate(jobs):
                if job.exit_code == 0:
                    continue
                print(f"run {index} of {len(jobs)} in {folder / str(index)}: {_shown(job)}", flush=True)
                is_stopped = _run(job, folder, index, jobs, resumes)
                if is_stopped:
                    break
    except FolderInUse as error:
        raise ConfigError(str(error)) from error
    print("\n".join(table(jobs)), flush=True)
    all_done = all(job.exit_code == 0 for job in jobs)
    return 0 if all_done else PREEMPTED if is_stopped else FAILED


def jobs_of(words: list[str]) -> list[Job]:
    """Return the runs of a command line: the Cartesian product of its bare words' values, the last one fastest."""
    flags, settings = split_settings(words)
    options = []
    for setting in settings:
        key, _, text = setting.partition("=")
        values = choices(text)
        if len(values) > 1 and not all(values):
            raise ConfigError(f"`{setting}`: a value between the commas is empty")
        options.append([f"{key}={value}" for value in values])
    several = [index for index, values in enumerate(options) if len(values) > 1]
    return [
        Job([*flags, "--no_multirun", *chosen], [chosen[index] for index in several])
        for chosen in itertools.product(*options)
    ]


def choices(text: str) -> list[str]:
    """Split a value at its commas, except those in brackets and quotes: `[1,2],3` is `[1,2]` and `3`."""
    parts, closing = [""], []
    for character in text:
        if closing and character == closing[-1]:
            closing.pop()
        elif character in PAIRS and not (closing and closing[-1] in "\"'"):
            closing.append(PAIRS[character])
        elif character == "," and not closing:
            parts.append("")
            continue
        parts[-1] += character
    return [text] if closing else parts


def _read(job: Job, read: Callable[[list[str]], Any]) -> Any:
    try:
        return read(job.words)
    except ConfigError as error:
        raise ConfigError([f"{line} (of the run {_shown(job)})" for line in error.problems]) from error


def _folder_of(runs: list[RunConfig]) -> Path:
    """Return the folder of a sweep; a ConfigError if its runs would write to several, or all to one."""
    folders = list(dict.fromkeys(run.output_dir for run in runs))
    if len(folders) > 1:
        raise ConfigError(f"the runs of a sweep have one output_dir, not {folders[0]} and {folders[1]}; name it")
    for key, others in (
        ("checkpointing.dirpath", [run.checkpoint_dir for run in runs if run.checkpoint_dir != run.output_dir]),
        ("logging_dir", [run.hyper.logging_dir for run in runs if run.hyper.logging_dir]),
    ):
        if len(set(others)) < len(others):
            raise ConfigError(f"`{key}: {others[0]}` would be the folder of several runs of the sweep; leave it out")
    return folders[0]


def _continued(folder: Path, jobs: list[Job]) -> list[Job]:
    """Return the jobs as an earlier start of the same sweep left them."""
    file = folder / FILE
    if not file.is_file():
        return jobs
    try:
        earlier = [Job(**entry) for entry in safe_read.read_json(file)["runs"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} cannot be read ({error}); delete it to run all again") from error
    if [job.words for job in earlier] != [job.words for job in jobs]:
        raise ConfigError(f"{folder} has another sweep (its {FILE} has other words); name another output_dir")
    return earlier


def _run(job: Job, folder: Path, index: int, jobs: list[Job], resumes: bool) -> bool:
    """Run one job to its end; return whether it was preempted, as by any signal to this process."""
    # Quoted, because a setting's value is read as YAML.
    words = [*job.words, f"output_dir={json.dumps(str(folder / str(index)), ensure_ascii=False)}"]
    if job.has_begun and not resumes:
        words.append("resume_from_checkpoint=auto")
    job.has_begun, job.exit_code = True, None
    _record(folder, jobs)
    start, process, is_stopped = time.monotonic(), None, False
    try:
        process = subprocess.Popen([sys.executable, str(ROOT / "train.py"), *words])
        job.exit_code = process.wait()
    except BaseException as error:
        if process is None or isinstance(error, Exception):
            raise
        is_stopped = True
        process.terminate()
        job.exit_code = process.wait()
    job.seconds += time.monotonic() - start
    _record(folder, jobs)
    return is_stopped or job.exit_code == PREEMPTED


def _record(folder: Path, jobs: list[Job]) -> None:
    write_json(folder / FILE, {"runs": [asdict(job) for job in jobs]})


def table(jobs: list[Job]) -> list[str]:
    """Return the lines of the table at the end: number, outcome, duration, settings."""
    rows = [("run", "outcome", "seconds", "settings")]
    rows += [(str(index), job.outcome, f"{job.seconds:.1f}", _shown(job)) for index, job in enumerate(jobs)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]) for row in rows]


def _shown(job: Job) -> str:
    return " ".join(job.settings) or "(one combination)"
