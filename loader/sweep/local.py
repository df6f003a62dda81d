"""Start the runs of a sweep as processes of this machine, several at the same time, and end them with it."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from loader.errors import ConfigError
from loader.schema.keys import ROOT
from loader.sweep.jobs import PREEMPTED, Record, job_of, own_words
from loader.sweep.optuna_study import OptunaStudy
from loader.sweep.results import LogReader, Objective
from loader.sweep.space import Space
from storage.lock import FolderInUse, RunLock

POLL = 0.2  # seconds
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
LIBC = ctypes.CDLL(None)
# Exit codes of a run that a signal ended before it had its handlers.
STOPPED = (-signal.SIGTERM, -signal.SIGINT, -signal.SIGUSR1)


@dataclass
class Running:
    """A started run; `slot` numbers the runs of one moment."""

    process: subprocess.Popen
    slot: int
    log: LogReader
    began: float = field(default_factory=time.monotonic)
    is_terminated: bool = False

    def terminate(self) -> None:
        """Ask the run once to save its state and exit."""
        if not self.is_terminated:
            self.process.terminate()
            self.is_terminated = True


@dataclass
class LocalSweep:
    """Runs the jobs of a record that are not finished.

    Attributes:
        trials: Number of runs; those that the record lacks are chosen by `study` when they start.
        stop: `with stop, stop.deferred()` lets a signal only set `stop.received` (`trainer.preemption.Signals`): an
            exception could arrive between a start and its record.
        resumes: Whether the command line says itself what a run resumes from.
        needs_objective: Whether a run without the objective is an error.
    """

    record: Record
    space: Space
    objective: Objective
    trials: int
    stop: Any
    parallel: int = 1
    study: OptunaStudy | None = None
    resumes: bool = False
    needs_objective: bool = False
    running: dict[int, Running] = field(default_factory=dict)

    def run(self) -> bool:
        """Run all jobs; returns whether they were preempted, one of them or all by a signal to this process.

        Raises:
            ConfigError: a run has ended without the objective.
        """
        self._tell_again()
        pending, devices = self._pending(), visible_gpus() if self.parallel > 1 else []
        with self.stop, self.stop.deferred():
            try:
                is_stopped = False
                while True:
                    is_stopped |= self.stop.received is not None
                    while not is_stopped and len(self.running) < self.parallel:
                        if (index := next(pending, None)) is None:
                            break
                        self._start(index, devices)
                        is_stopped |= self.stop.received is not None
                    for each in self.running.values() if is_stopped else ():
                        each.terminate()
                    if not self.running:
                        return is_stopped
                    time.sleep(POLL)
                    is_stopped |= self._follow()
            finally:  # after an error
                for each in self.running.values():
                    each.terminate()
                for index in list(self.running):
                    self._end(index, self.running[index].process.wait())

    def _pending(self) -> Iterator[int]:
        """The numbers of the runs to start; each run is chosen as late as possible."""
        jobs = self.record.jobs
        for index in range(self.trials):
            if index == len(jobs):
                jobs.append(job_of(self.space, self.study.values(index)))
            if not jobs[index].is_finished:
                yield index

    def _start(self, index: int, devices: list[str]) -> None:
        job, folder = self.record.jobs[index], self.record.run_folder(index)
        if not _wait_for(RunLock(folder), self.stop):
            return
        print(f"run {index} of {self.trials} in {folder}: {job}", flush=True)
        words = own_words(job, str(folder))
        if job.has_begun and not self.resumes:
            words.append("resume_from_checkpoint=auto")
        job.has_begun, job.exit_code = True, None
        self.record.write()
        slot = min(set(range(self.parallel)) - {each.slot for each in self.running.values()})
        with contextlib.ExitStack() as closing:
            output = None
            if self.parallel > 1:
                output = closing.enter_context(open(self.record.folder / f"{index}.log", "ab"))
            process = subprocess.Popen(
                [sys.executable, str(ROOT / "train.py"), *words],
                env={**os.environ, **self._environment(slot, devices)},
                stdout=output,
                stderr=output,
                preexec_fn=functools.partial(_end_with_parent, os.getpid()) if sys.platform == "linux" else None,
            )
        self.running[index] = Running(process, slot, LogReader(folder))

    def _environment(self, slot: int, devices: list[str]) -> dict[str, str]:
        """A GPU for each of several runs, in turn; and its share of the CPUs."""
        if self.parallel == 1:
            return {}
        threads = max(len(os.sched_getaffinity(0)) // self.parallel, 1)
        shared = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(threads)}
        return {"CUDA_VISIBLE_DEVICES": devices[slot % len(devices)], **shared} if devices else shared

    def _follow(self) -> bool:
        """Prune and end what is to be; returns whether a run was preempted that this process did not end."""
        is_preempted = False
        for index, each in list(self.running.items()):
            job, code = self.record.jobs[index], each.process.poll()
            if self.study is not None and not job.is_pruned:
                for step, value in self.objective.values(each.log.new_records()):
                    if self.study.should_prune(index, step, value) and code is None and not job.is_pruned:
                        job.is_pruned = True
                        self.record.write()
                        each.terminate()
            if code is not None:
                self._end(index, code)
                self._tell(index)
                is_preempted |= job.exit_code == PREEMPTED and not job.is_pruned
        return is_preempted

    def _end(self, index: int, code: int) -> None:
        """Record the end of a run."""
        job, each = self.record.jobs[index], self.running.pop(index)
        is_stopped = code in STOPPED and (each.is_terminated or self.stop.received)
        job.exit_code = PREEMPTED if is_stopped else code
        job.is_pruned &= code != 0  # it was at its end already
        job.seconds += time.monotonic() - each.began
        self.record.write()
        if self.parallel > 1:
            print(f"run {index}: {job.outcome}", flush=True)

    def _tell(self, index: int) -> None:
        job, best = self.record.jobs[index], self.objective.best(self.record.run_folder(index))
        if job.exit_code == 0 and best is None and self.needs_objective:
            raise ConfigError(
                f"`--objective {self.objective.name}`: run {index} has logged no evaluation of that name in "
                f"{self.record.run_folder(index)}/metrics.jsonl; name a metric that is in it"
            )
        if self.study is not None:
            self.study.tell(index, job, best[1] if best else None)

    def _tell_again(self) -> None:
        """What an earlier start recorded, but could not say to the study before it was killed."""
        for index, job in enumerate(self.record.jobs):
            if job.is_finished:
                self._tell(index)


def visible_gpus() -> list[str]:
    """The GPUs of this machine, as CUDA_VISIBLE_DEVICES names them."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [str(number) for number in range(sum(line.startswith("GPU ") for line in listed.splitlines()))]


def _wait_for(lock: RunLock, stop: Any) -> bool:
    """Wait until the process of an earlier start, killed without its children, has left a run's folder."""
    is_said = False
    while stop.received is None:
        try:
            lock.check()
            return True
        except FolderInUse as error:
            if not is_said:
                print(f"waiting: {error}", flush=True)
            is_said = True
            time.sleep(POLL)
    return False


def _end_with_parent(parent: int) -> None:
    """Let the system send SIGTERM to this new process when its parent dies: not even a SIGKILL leaves orphans."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)
