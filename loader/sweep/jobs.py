"""The runs of a sweep, and `OUT/sweep.json`, which records at any instant what each has come to."""

from __future__ import annotations

import json
import signal
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from loader.errors import ConfigError
from loader.sweep.space import Space
from storage import safe_read
from storage.atomic import write_json

FILE = "sweep.json"
PREEMPTED = 75


@dataclass
class Job:
    """One run of a sweep.

    Attributes:
        words: Its command line, but for `output_dir`.
        settings: What distinguishes it from the others: key -> value, as text.
        exit_code: None until it has ended; negative: the signal that killed it.
        is_pruned: Whether the sampler has ended it early.
        seconds: Duration of all its starts; 0 if another machine ran it.
    """

    words: list[str]
    settings: dict[str, str]
    has_begun: bool = False
    exit_code: int | None = None
    is_pruned: bool = False
    seconds: float = 0.0

    @property
    def is_finished(self) -> bool:
        return self.is_pruned or self.exit_code == 0

    @property
    def has_failed(self) -> bool:
        return not self.is_finished and self.exit_code not in (None, PREEMPTED)

    @property
    def outcome(self) -> str:
        if self.is_pruned:
            return "pruned"
        if self.exit_code is None:
            return "not finished" if self.has_begun else "not started"
        if self.exit_code < 0:
            return f"killed by {signal.Signals(-self.exit_code).name}"
        return {0: "done", PREEMPTED: "preempted"}.get(self.exit_code, f"failed, exit code {self.exit_code}")

    def __str__(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.settings.items()) or "(one combination)"


@dataclass
class Record:
    """The content of `OUT/sweep.json`.

    Attributes:
        folder: OUT; run N writes to OUT/N.
        identity: What must be the same for a later command to continue this sweep.
        jobs: The runs in the order of their numbers.
        slurm_jobs: Numbers of the job arrays that may still have runs in the queue.
    """

    folder: Path
    identity: dict[str, Any]
    jobs: list[Job] = field(default_factory=list)
    slurm_jobs: list[str] = field(default_factory=list)

    def run_folder(self, index: int) -> Path:
        return self.folder / str(index)

    def write(self) -> None:
        runs = [asdict(job) for job in self.jobs]
        write_json(self.folder / FILE, {"sweep": self.identity, "slurm_jobs": self.slurm_jobs, "runs": runs})

    def continue_earlier(self) -> None:
        """Take over what an earlier start of the same sweep has recorded.

        Raises:
            ConfigError: the folder has another sweep, or its record is damaged.
        """
        file = self.folder / FILE
        if not file.is_file():
            return
        try:
            content = safe_read.read_json(file)
            identity, slurm_jobs = content["sweep"], list(content["slurm_jobs"])
            earlier = [Job(**entry) for entry in content["runs"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{file} cannot be read ({error}); delete it to run all again") from error
        if identity != self.identity:
            raise ConfigError(f"{self.folder} has another sweep (its {FILE} has other words); name another output_dir")
        self.slurm_jobs = slurm_jobs
        self.jobs = [*earlier, *self.jobs[len(earlier) :]]


def job_of(space: Space, chosen: tuple[str, ...]) -> Job:
    """The run for a value of each varying key."""
    return Job([*space.flags, *space.settings(chosen)], dict(zip(space.varying, chosen, strict=True)))


def own_words(job: Job, folder: str) -> list[str]:
    """The command line of a run; the folder is quoted, because a setting's value is read as YAML."""
    return [*job.words, f"output_dir={json.dumps(folder, ensure_ascii=False)}"]
