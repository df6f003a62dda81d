"""Kill a training again and again and verify that nothing is lost.

    python -m trainer.killtest --training_config FILE [--kills 20] [--output_dir FOLDER] [flags of train.py …]

`train.py` runs twice with the same flags: once uninterrupted in FOLDER/whole, and in FOLDER/killed with
`--resume_from_checkpoint auto`, where it and its workers are killed (SIGKILL) at random instants and started again. One
half of the kills waits for a save; the other half is at a random time of a run's duration, start-up included. If a run
ends before it is killed, it is compared, and another one starts in a new folder.

After each kill every checkpoint-N must be complete, the newest no older than before, and the metrics up to it those of
the uninterrupted run. At the end the tensors of the final model and of the newest checkpoint must be equal bit for bit,
metrics.jsonl must have the same lines except for times, and nothing half-written may be left.

Exit code 0: nothing was lost, 1: something was, 2: the flags describe no run that can be tested.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from storage import manifest
from storage.checkpoints import STAGING, checkpoints
from trainer.run_differences import differences, half_written, last_step, metric_differences, newest_complete

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
FAILED, BAD_INPUT = 1, 2
PATIENCE = 10  # a run that takes more than so many times the uninterrupted run hangs
POLL_INTERVAL = 0.002  # seconds between two polls for a save
AFTER_SAVE = 0.05  # seconds within which a kill follows the save that it waited for
EXIT_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
SHOWN = 10  # differences that are printed


class NotTestable(Exception):
    """The flags describe no run that can be tested."""


class StateLost(Exception):
    """State was lost or changed; each argument is one line."""


def main(arguments: list[str] | None = None) -> int:
    """Print a line for each kill and the result; return the exit code."""
    flags, training_flags = _parser().parse_known_args(arguments)
    for number in EXIT_SIGNALS:  # as SystemExit, so that no run is left behind
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    keep = True
    try:
        training_flags = [*training_flags, *_separate_checkpoints(training_flags)]
        folder = _output_folder(flags.output_dir)
        keep = flags.keep
        test = KillTest(training_flags, folder, random.Random(flags.seed), flags.kills)
        test.run_uninterrupted()
        test.kill_all()
    except NotTestable as error:
        keep = True
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except StateLost as error:
        keep = True
        for line in error.args[:SHOWN]:
            print(f"  {line}")
        print(f"FAILED after {test.made} of {flags.kills} kills; all runs are kept in {folder}", flush=True)
        return FAILED
    finally:
        if not keep:
            shutil.rmtree(folder)
    print(test.result() + (f"; all runs are kept in {folder}" if keep else ""), flush=True)
    return 0


# ---- the runs ----


class Run:
    """A process of `train.py` in its own process group, with output folder `out` and its output appended to `log`."""

    def __init__(self, flags: Sequence[str], out: Path, log: Path):
        self.log, self.log_start = log, log.stat().st_size if log.exists() else 0
        with open(log, "ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, str(TRAIN), *flags, "--output_dir", str(out)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def ended(self, seconds: float) -> bool:
        """Wait for at most `seconds`; whether the run has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        return self.process.returncode is not None

    def kill(self) -> None:
        """Kill the run and its workers, also workers that an ended run left behind."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def output(self) -> str:
        """Return what the run has printed."""
        return self.log.read_bytes()[self.log_start :].decode("utf-8", "replace")

    def last_lines(self) -> str:
        """Return the last three lines that the run has printed, in one line."""
        return " / ".join(self.output().strip().splitlines()[-3:]) or "nothing"


class KillTest:
    """The uninterrupted run and those that are killed.

    Args:
        flags: Flags for `train.py`.
        folder: Holds all runs.
        random_state: Draws the instants of the kills.
        kills: Number of kills.
    """

    def __init__(self, flags: Sequence[str], folder: Path, random_state: random.Random, kills: int):
        self.flags, self.folder, self.random, self.kills = list(flags), folder, random_state, kills
        self.reference, self.out = folder / "whole", folder / "killed"
        self.made = self.while_saving = self.rounds = 0
        self.duration = 0.0  # seconds of the fastest run so far, start-up included
        self.timeout = 0.0  # seconds after which a run counts as hanging

    def run_uninterrupted(self) -> None:
        """Run without interruption.

        Raises:
            NotTestable: the run fails, or saves no checkpoint.
        """
        began = time.monotonic()
        with self._running(self.reference, self.flags) as run:
            code = run.process.wait()
        self.duration = time.monotonic() - began
        self.timeout = 120 + PATIENCE * self.duration
        if code:
            raise NotTestable(f"the uninterrupted run ended with exit code {code}: {run.last_lines()} (in {run.log})")
        saved = checkpoints(self.reference)
        if not saved:
            raise NotTestable("the uninterrupted run saved no checkpoint; let it save several (--save_steps)")
        if any(manifest.verify(path) for path in [*saved, self.reference]):
            raise NotTestable(f"the uninterrupted run is incomplete; see python -m trainer.verify {self.reference}")
        names = ", ".join(path.name for path in saved)
        print(f"uninterrupted run: {self.duration:.1f} s, step {last_step(self.reference)}, {names}", flush=True)

    def kill_all(self) -> None:
        """Run rounds, each from the first step to the end, until all kills are made and the last round has ended.

        Raises:
            StateLost: state was lost or changed.
        """
        while self.made < self.kills:
            shutil.rmtree(self.out, ignore_errors=True)
            self.rounds += 1
            before = self.made
            self._round()
            if lines := differences(self.reference, self.out):
                raise StateLost(f"round {self.rounds} differs from the uninterrupted run:", *lines)
            print(f"round {self.rounds}: ended after {self.made - before} kills like the uninterrupted run", flush=True)

    def _round(self) -> None:
        """One training from its first step to its end, through several kills."""
        newest = None  # step of the newest complete checkpoint
        while True:
            began = time.monotonic()
            with self._running(self.out, [*self.flags, "--resume_from_checkpoint", "auto"]) as run:
                has_ended = self._wait_for_instant(run) if self.made < self.kills else run.ended(self.timeout)
                is_saving = any(half_written(self.out))
            if has_ended:
                if newest is None:  # the machine may be less busy now: later kills must not miss the run
                    self.duration = min(self.duration, time.monotonic() - began)
                return self._check_end(run, newest)
            if self.made == self.kills:
                raise StateLost(f"a resumed run did not end within {self.timeout:.0f} s: {run.last_lines()}")
            self.made += 1
            self.while_saving += is_saving
            newest = self._check_kill(newest, is_saving)

    def _wait_for_instant(self, run: Run) -> bool:
        """Wait until the instant of the kill: a random time, or right after a save began or ended; True if the run
        ended before."""
        if self.random.random() < 0.5:
            return run.ended(self.random.uniform(0, self.duration))
        began, before, wanted = time.monotonic(), _save_names(self.out), self.random.randint(1, 4)
        while wanted > 0:
            if run.ended(POLL_INTERVAL):
                return True
            names = _save_names(self.out)
            wanted, before = wanted - len(names - before), names
            if time.monotonic() - began > self.timeout:
                raise StateLost(f"a run neither saved nor ended within {self.timeout:.0f} s: {run.last_lines()}")
        return run.ended(self.random.uniform(0, AFTER_SAVE))

    def _check_end(self, run: Run, newest: int | None) -> None:
        if code := run.process.returncode:
            raise StateLost(f"a run that {_start_text(newest)} ended with exit code {code}: {run.last_lines()}")
        if newest is not None and f"checkpoint-{newest}" not in run.output():
            raise StateLost(f"a run did not resume from checkpoint-{newest}")

    def _check_kill(self, before: int | None, is_saving: bool) -> int | None:
        """Return the step of the newest complete checkpoint after a kill; `before`: that before the kill."""
        newest, lines = newest_complete(self.out)
        place = " while saving" if is_saving else ""
        print(f"kill {self.made}/{self.kills} at step ~{last_step(self.out)}{place}: {_start_text(newest)}", flush=True)
        if before is not None and (newest is None or newest < before):
            lines.append(f"checkpoint-{before} was complete and is lost")
        if newest is not None:
            lines += metric_differences(self.reference, self.out, before=newest)
        if lines:
            raise StateLost(f"after kill {self.made}:", *lines)
        return newest

    @contextlib.contextmanager
    def _running(self, out: Path, flags: Sequence[str]) -> Iterator[Run]:
        """A run that is killed at the end of the block."""
        run = Run(flags, out, self.folder / f"{out.name}.log")
        try:
            yield run
        finally:
            run.kill()

    def result(self) -> str:
        """Return the line that is printed if nothing was lost."""
        saving = f"{self.while_saving} while saving"
        return f"passed: {self.made} kills ({saving}) in {self.rounds} rounds, nothing lost, all ends are equal"


def _start_text(newest: int | None) -> str:
    return "starts from step 0" if newest is None else f"resumes from {newest}"


def _save_names(run: Path) -> set[str]:
    """Names in a run's folder that a save adds."""
    return {path.name for prefix in (STAGING, "checkpoint-") for path in run.glob(f"{prefix}*")}


# ---- the command ----


def _separate_checkpoints(flags: list[str]) -> list[str]:
    """Return a flag that keeps each run's checkpoints in its own folder, if the configuration has a common one.

    Raises:
        NotTestable: train.py rejects the flags.
    """
    if any(flag.partition("=")[0] == "--resume_from_checkpoint" for flag in flags):
        raise NotTestable("`--resume_from_checkpoint` is set by this test; leave it out")
    command = [sys.executable, str(TRAIN), *flags, "--print_config", "json"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise NotTestable(done.stderr.strip().removeprefix("error: "))
    shared = json.loads(done.stdout).get("checkpointing.dirpath", {}).get("value")
    if not shared:
        return []
    print(f"checkpointing.dirpath: {shared} would be shared by all runs; here each has its own", flush=True)
    return ["--set", "checkpointing.dirpath=null"]


def _output_folder(name: str | None) -> Path:
    """Return the folder of all runs.

    Raises:
        NotTestable: it cannot be created, or is not empty.
    """
    if name is None:
        return Path(tempfile.mkdtemp(prefix="killtest-"))
    folder = Path(os.path.abspath(os.path.expanduser(name)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NotTestable(f"`--output_dir {name}` cannot be used: {error.strerror}") from error
    if any(folder.iterdir()):
        raise NotTestable(f"`--output_dir {name}` is not empty; name another folder or delete it")
    return folder


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not an integer ≥ 1")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.killtest",
        usage="python -m trainer.killtest --training_config FILE [--kills N] [--seed N] [--keep] [flags of train.py …]",
        description=__doc__,
        epilog="All other flags are passed to train.py; the training's seed is --set seed=…. Do not use "
        "validate_before_resume, which logs additional evaluations.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--kills", type=_positive, default=20, help="number of kills [20]")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random instants [0]")
    parser.add_argument(
        "--keep", action="store_true", help="keep all runs; by default only those that show an error are kept"
    )
    parser.add_argument(
        "--output_dir", "--out_dir", metavar="FOLDER", help="folder of the runs, on the file system to be tested"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
