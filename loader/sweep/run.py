"""`train.py -m …`: choose the runs, start or continue them, and compare them at the end.

The runs write to OUT/0, OUT/1 …; OUT/sweep.json records how each ended, so that the same command continues a sweep.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from loader.errors import ConfigError
from loader.resolve.run_config import RunConfig
from loader.resolve.type_check import out_of_bounds
from loader.schema.hyper_arguments import SweepArguments
from loader.schema.keys import keys_of
from loader.sweep.jobs import PREEMPTED, Job, Record, job_of
from loader.sweep.local import LocalSweep
from loader.sweep.optuna_study import OptunaStudy, require_optuna
from loader.sweep.results import Objective, conclude
from loader.sweep.slurm import submit
from loader.sweep.space import Space
from storage.lock import FolderInUse, RunLock

FAILED = 1
Read = Callable[[list[str]], Any]
Find = Callable[[str, Mapping[str, Any]], str | None]
Direction = Callable[[str, RunConfig], str | None]


def sweep(
    words: list[str],
    asked: SweepArguments,
    read: Read,
    asks: bool,
    *,
    find: Find,
    direction: Direction,
    stop: Any,
) -> int:
    """Run a sweep and return the exit code: 0 if all runs ended well, 75 if it is to be continued, else 1.

    Args:
        read: Returns the checked RunConfig of a command line, or prints what it asks for.
        asks: Whether the command line asks for something instead of runs (`--check`).
        find: The name of a metric in a record of the log.
        direction: `min` or `max`: the better direction of a metric of a run's data.
        stop: See `LocalSweep`.

    Raises:
        ConfigError: a run cannot be started (none is), or its folder has another sweep or is in use.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError("-m starts each run as one process; start it without torchrun or another launcher")
    space = Space.read(words)
    check_flags(asked, space)
    jobs = [job_of(space, chosen) for chosen in combinations(space, asked)]
    runs = []
    for index, job in enumerate(jobs):
        if asks:
            print(f"# run {index}: {job}")
        runs.append(_read(job, read))
    if asks:
        return 0
    folder = _folder_of(runs)
    objective = _objective(asked, runs[0], find, direction)
    record = Record(folder, identity(space, asked, objective.mode), jobs if asked.sampler != "optuna" else [])
    try:
        with RunLock(folder):
            record.continue_earlier()
            if asked.launcher == "slurm":
                return _submit(record, space, objective, asked)
            return _run(record, space, objective, asked, stop, runs[0].was_set("resume_from_checkpoint"))
    except FolderInUse as error:
        raise ConfigError(str(error)) from error


def _objective(asked: SweepArguments, run: RunConfig, find: Find, direction: Direction) -> Objective:
    mode = asked.objective_mode or direction(asked.objective, run)
    if mode is None:
        raise ConfigError(
            f"`--objective {asked.objective}`: whether less or more of it is better is not known; give "
            "--objective_mode min or max"
        )
    return Objective(asked.objective, mode, find)


def combinations(space: Space, asked: SweepArguments) -> list[tuple[str, ...]]:
    """The values of all runs; of Optuna's, which depend on results, those to check before the start."""
    if asked.sampler == "grid":
        return list(space.grid())
    if asked.sampler == "random":
        return list(itertools.islice(space.random(asked.sampler_seed), asked.trials))
    return list(space.corners())


def check_flags(asked: SweepArguments, space: Space) -> None:
    """Raise ConfigError for a flag out of its bounds, without effect, or missing."""
    for name, key in keys_of(SweepArguments).items():
        if name in asked.given and (wanted := out_of_bounds(getattr(asked, name), key.bounds)):
            raise ConfigError(f"flag `--{name} {getattr(asked, name)}` must be {wanted}")
    useless = {
        "trials": asked.sampler == "grid" and "the grid has all combinations; give --sampler random or optuna",
        "sampler_seed": asked.sampler == "grid" and "the grid has all combinations; give --sampler random or optuna",
        "pruner": asked.sampler != "optuna" and "only Optuna ends runs early; give --sampler optuna",
        "slurm": asked.launcher != "slurm" and "it needs --launcher slurm",
    }
    for name, reason in useless.items():
        if name in asked.given and reason:
            raise ConfigError(f"`--{name} {getattr(asked, name)}` has no effect: {reason}")
    if asked.sampler == "grid":
        return
    if asked.trials is None:
        raise ConfigError(f"--sampler {asked.sampler} needs the number of runs; give --trials N")
    if asked.sampler == "random" and asked.trials > space.size:
        raise ConfigError(f"`--trials {asked.trials}`: there are {space.size} combinations; lower it to at most that")
    if asked.sampler == "optuna":
        if asked.launcher == "slurm":
            raise ConfigError("--sampler optuna chooses a run from the results so far, and an array is submitted at "
                              "once; give --sampler random, or --launcher local inside one job")  # fmt: skip
        require_optuna()


def identity(space: Space, asked: SweepArguments, mode: str) -> dict[str, Any]:
    """What makes two command lines the same sweep; the number of trials may grow."""
    same: dict[str, Any] = {"words": space.words, "sampler": asked.sampler}
    if asked.sampler != "grid":
        same["sampler_seed"] = asked.sampler_seed
    return {**same, "objective": asked.objective, "objective_mode": mode} if asked.sampler == "optuna" else same


def _submit(record: Record, space: Space, objective: Objective, asked: SweepArguments) -> int:
    """Submit what is neither finished nor in Slurm's queue; returns the exit code."""
    submitted, queued = submit(record, space, asked)
    if submitted:
        print(f"{submitted} of {len(record.jobs)} runs are submitted as job {record.slurm_jobs[-1]}")
        print("the same command compares them later, and submits again those that have failed")
        return 0
    conclude(record, objective)
    if queued:
        print(f"{queued} runs are still in the queue")
    return PREEMPTED if queued else 0


def _run(record: Record, space: Space, objective: Objective, asked: SweepArguments, stop: Any, resumes: bool) -> int:
    """Run what is not finished; returns the exit code."""
    study = OptunaStudy(record.folder, space, asked, objective.mode) if asked.sampler == "optuna" else None
    trials = max(asked.trials or 0, len(record.jobs))
    needs_objective = study is not None or "objective" in asked.given
    local = LocalSweep(record, space, objective, trials, stop, asked.parallel, study, resumes, needs_objective)
    is_stopped = local.run()
    conclude(record, objective)
    all_done = len(record.jobs) == trials and all(job.is_finished for job in record.jobs)
    return 0 if all_done else PREEMPTED if is_stopped else FAILED


def _read(job: Job, read: Read) -> Any:
    try:
        return read(job.words)
    except ConfigError as error:
        raise ConfigError([f"{line} (of the run {job})" for line in error.problems]) from error


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
