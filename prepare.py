"""Prepare a task's data, recorded in simulation: `python prepare.py --task_name TASK [--num_episodes 50]`."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from loader.cli import entry_flags, refusing
from loader.errors import ConfigError
from loader.hyper import HyperArguments, flag
from loader.run_config import RunConfig, resolve

DEFAULT_EPISODES = 50
# Of the expert's full variation: enough that no two demonstrations are alike, little enough that the same start still
# means nearly the same motion, which is what fifty demonstrations can teach.
DEFAULT_JITTER = 0.3


@dataclass
class PrepareArguments:
    """What to prepare."""

    task_name: str = flag("sim_transfer_cube_state", "Task: a file in configs/task/, or a path.")
    num_episodes: int = flag(DEFAULT_EPISODES, "Episodes the folder shall hold; those already recorded are kept.", ge=1)
    seed: int = flag(0, "Seed of the recording: start positions and the expert's variation.", ge=0)
    jitter: float = flag(DEFAULT_JITTER, "Random variation of the expert's motion; 0 for none, 1 for much.", ge=0, le=3)
    num_workers: int | None = flag(None, "Recording processes. Default: one a core.", ge=1)
    set: list[str] = flag([], "Override any key of the configuration: --set env.cameras=[top].")


def main(arguments: list[str] | None = None) -> None:
    """Records what is missing and prints where the data lies."""
    asked = entry_flags(PrepareArguments, arguments, "prepare.py", __doc__)
    run = refusing(resolve, HyperArguments(task_name=asked.task_name), asked.set)
    folder = refusing(record_episodes, run, asked.num_episodes, asked.seed, asked.jitter, asked.num_workers)
    print(f"data of {run.task} in {folder}")


def with_prepared_data(run: RunConfig) -> RunConfig:
    """The run with `dataset.path` filled in; a task that records its own data does so on first use.

    An interrupted recording is completed to the number of episodes it was begun for.
    """
    config = run.dataset.config
    if run.env is None or getattr(config, "path", "") is not None:
        return run
    folder = recording_folder(run)
    found = recorder(run).recorded(run.env.config, folder)
    if found is None:
        print(f"no data for {run.task} yet: recording {DEFAULT_EPISODES} episodes into {folder}", flush=True)
        record_episodes(run, DEFAULT_EPISODES, seed=0, jitter=DEFAULT_JITTER)
    elif found.kept < found.wanted:
        print(
            f"the recording in {folder} was interrupted at {found.kept} of {found.wanted} episodes: going on",
            flush=True,
        )
        record_episodes(run, found.wanted, found.seed, found.jitter)
    config = dataclasses.replace(config, path=str(folder))
    return dataclasses.replace(run, dataset=dataclasses.replace(run.dataset, config=config))


def recorder(run: RunConfig) -> ModuleType:
    """The module that records in the run's environment: `record`, beside it."""
    return importlib.import_module(f"{run.env.module.__package__}.record")


def recording_folder(run: RunConfig) -> Path:
    """Where a task's own recording lies: $KEEL_HOME/datasets/TASK."""
    return run.cache_dir / "datasets" / run.task


def record_episodes(
    run: RunConfig, num_episodes: int, seed: int, jitter: float = DEFAULT_JITTER, num_workers: int | None = None
) -> Path:
    """Records the episodes that the task's folder lacks.

    Raises:
        ConfigError: the task has no environment to record in, or names a path of its own.
    """
    if run.env is None:
        raise ConfigError(f"task `{run.hyper.task_name}` has no `env` to record demonstrations in")
    if run.dataset is not None and getattr(run.dataset.config, "path", None) is not None:
        raise ConfigError(f"`dataset.path`{run.place('dataset.path')} names data of its own; leave it out to record")
    folder = recording_folder(run)
    with locked(folder):
        report = recorder(run).record(run.env.config, folder, num_episodes, seed, num_workers, jitter)
    print(
        f"recorded {report.recorded} episodes in {report.seconds:.0f} s ({report.kept} in the folder, "
        f"{report.discarded} failed attempts discarded)",
        flush=True,
    )
    return folder


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One recorder at a time: a second one waits, then finds the episodes there."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".recording.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    main()
