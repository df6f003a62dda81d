"""Kills a training again and again and proves that nothing is lost.

    python -m trainer.killtest --training_config FILE [--kills 20] [--output_dir FOLDER] [flags of train.py …]

`train.py` runs twice with the same flags: once undisturbed in FOLDER/whole, and in FOLDER/killed with
`--resume_from_checkpoint auto`, where it and its workers are killed (SIGKILL) at random instants and started again. One
half of the kills waits for a save; the other half falls anywhere in the time that the undisturbed run took, start-up
included. A run that ends before it is killed is compared, and another one begins in a folder of its own.

After each kill every checkpoint-N must be whole, the newest no older than before, and the metrics up to it those of the
undisturbed run. In the end the tensors of the final model and of the newest checkpoint must be equal bit for bit,
metrics.jsonl must have the same lines but for times, and nothing half-written may be left.

Exit code 0: proven, 1: not, 2: the flags describe no run that can be tested.
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
from trainer.tools.run_differences import checked, differences, half_written, last_step, metric_differences

TRAIN = Path(__file__).resolve().parents[2] / "train.py"
NOT_PROVEN, BAD_INPUT = 1, 2
PATIENCE = 10  # times what the undisturbed run took: a run that takes longer hangs
LOOK = 0.002  # seconds between two looks for a save
AFTER_SAVE = 0.05  # seconds within which a kill follows what it waited for
SHOWN = 10  # differences that are printed


class NotTestable(Exception):
    """The flags describe no run that can be tested; one line, or nothing where train.py has said it already."""


class Disproved(Exception):
    """Something was lost or changed; one line for each."""

    def __init__(self, *lines: str):
        super().__init__(*lines)
        self.lines = lines


def main(arguments: list[str] | None = None) -> int:
    """Kills, compares, prints a line for each kill and the verdict; returns the exit code."""
    parser = _parser()
    flags, words = parser.parse_known_args(arguments)
    try:
        with _ended_by_signals():
            return _test(flags, words)
    except NotTestable as error:
        if str(error):
            print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT


def _test(flags: argparse.Namespace, words: list[str]) -> int:
    words = [*words, *_separate_checkpoints(words)]
    folder, is_new = _room(flags.output_dir)
    test = KillTest(words, folder, random.Random(flags.seed), flags.kills)
    try:
        test.run_whole()
        test.kill_all()
    except Disproved as error:
        for line in error.lines[:SHOWN]:
            print(f"  {line}")
        print(f"NOT proven after {test.made} of {flags.kills} kills; everything is kept in {folder}", flush=True)
        return NOT_PROVEN
    except (KeyboardInterrupt, SystemExit):
        if not flags.keep:
            test.clear(is_new)
        raise
    if not flags.keep:
        test.clear(is_new)
    print(test.verdict() + (f"; everything is kept in {folder}" if flags.keep else ""), flush=True)
    return 0


# ---- the runs ----


class Run:
    """One `train.py` in a group of processes of its own, which goes into `out` and talks into `log`."""

    def __init__(self, words: Sequence[str], out: Path, log: Path):
        self.log, self.began_at = log, log.stat().st_size if log.exists() else 0
        with open(log, "ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, str(TRAIN), *words, "--output_dir", str(out)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def ended(self, seconds: float) -> bool:
        """Waits so long at most; whether the run has ended by itself."""
        try:
            self.process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """At once, its workers too; also what an ended run may have left behind."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def said(self) -> str:
        """What it has printed."""
        with open(self.log, "rb") as file:
            file.seek(self.began_at)
            return file.read().decode("utf-8", "replace")

    def last_words(self) -> str:
        lines = [line.strip() for line in self.said().splitlines() if line.strip()]
        return " / ".join(lines[-3:]) or "nothing"


class KillTest:
    """The undisturbed run and those that are killed.

    Args:
        words: Flags for `train.py`.
        folder: Holds all the runs.
        chance: Draws the instants.
        kills: How many there will be.
    """

    def __init__(self, words: Sequence[str], folder: Path, chance: random.Random, kills: int):
        self.words, self.folder, self.chance, self.kills = list(words), folder, chance, kills
        self.whole = folder / "whole"
        self.made = self.while_saving = self.rounds = 0
        self.duration = 0.0  # seconds that a run takes from its first step to its end, by the quickest so far
        self.patience = 0.0  # seconds after which one hangs

    def run_whole(self) -> None:
        """The undisturbed run.

        Raises:
            NotTestable: it fails, or saves nothing that a killed run could go on from.
        """
        began = time.monotonic()
        with self._running(self.whole, self.words) as run:
            code = run.process.wait()
        self.duration = time.monotonic() - began
        self.patience = 120 + PATIENCE * self.duration
        if code:
            raise NotTestable(f"the undisturbed run ended with exit code {code}: {run.last_words()} (in {run.log})")
        saved = checkpoints(self.whole)
        if not saved:
            raise NotTestable("the undisturbed run saved no checkpoint; let it save several (--save_steps)")
        if any(manifest.verify(path) for path in saved) or manifest.verify(self.whole):
            raise NotTestable(f"the undisturbed run is not whole; see python -m trainer.verify {self.whole}")
        names = ", ".join(path.name for path in saved)
        print(f"undisturbed run: {self.duration:.1f} s, step {last_step(self.whole)}, {names}", flush=True)

    def kill_all(self) -> None:
        """Round after round, each in a folder of its own, until all kills are made and the last round has ended.

        Raises:
            Disproved: something was lost or changed.
        """
        while self.made < self.kills:
            self.rounds += 1
            out = self.folder / ("killed" if self.rounds == 1 else f"killed-{self.rounds}")
            before = self.made
            self._round(out)
            if lines := differences(self.whole, out):
                raise Disproved(f"round {self.rounds} ended otherwise than the undisturbed run:", *lines)
            print(f"round {self.rounds}: ended after {self.made - before} kills as the undisturbed run", flush=True)
            if self.made < self.kills:
                shutil.rmtree(out)

    def _round(self, out: Path) -> None:
        """One training from its first step to its end, through all the kills that it meets."""
        newest, ended = None, False  # the step of the newest whole checkpoint; whether the run has reached its end
        while not ended:
            began = time.monotonic()
            with self._running(out, [*self.words, "--resume_from_checkpoint", "auto"]) as run:
                if self.made < self.kills:
                    ended = self._wait_for_instant(run, out)
                else:
                    ended = run.ended(self.patience)
                    if not ended:
                        raise Disproved(f"a resumed run did not end within {self.patience:.0f} s: {run.last_words()}")
                is_saving = any(half_written(out))
                run.kill()
            if ended:
                if newest is None:  # the machine may have had more to do before: kills shall not come too late
                    self.duration = min(self.duration, time.monotonic() - began)
                self._check_end(run, newest)
                return
            self.made += 1
            self.while_saving += is_saving
            newest = self._check_kill(out, newest, is_saving)

    def _wait_for_instant(self, run: Run, out: Path) -> bool:
        """Until the moment to kill has come; True if the run ended before."""
        if self.chance.random() < 0.5:
            return run.ended(self.chance.uniform(0, self.duration))
        wanted, delay = self.chance.randint(1, 4), self.chance.uniform(0, AFTER_SAVE)
        began, before = time.monotonic(), _names(out)
        while wanted:
            if run.ended(LOOK):
                return True
            now = _names(out)
            wanted = max(0, wanted - len(now - before))
            before = now
            if time.monotonic() - began > self.patience:
                raise Disproved(f"a run neither saved nor ended within {self.patience:.0f} s: {run.last_words()}")
        return run.ended(delay)

    def _check_end(self, run: Run, newest: int | None) -> None:
        code = run.process.returncode
        if code:
            raise Disproved(f"a run that {_beginning(newest)} ended with exit code {code}: {run.last_words()}")
        if newest is not None and f"checkpoint-{newest}" not in run.said():
            raise Disproved(f"a run had checkpoint-{newest} to go on from and did not say that it does")

    def _check_kill(self, out: Path, before: int | None, is_saving: bool) -> int | None:
        """The newest whole checkpoint's step, now that the run is dead; `before` it was this."""
        newest, lines = checked(out)
        place = " while saving" if is_saving else ""
        print(f"kill {self.made}/{self.kills} at step ~{last_step(out)}{place}: {_beginning(newest)}", flush=True)
        if before is not None and (newest is None or newest < before):
            lines.append(f"checkpoint-{before} had been published and is lost")
        if newest is not None:
            lines += metric_differences(self.whole, out, before=newest)
        if lines:
            raise Disproved(f"after kill {self.made}:", *lines)
        return newest

    @contextlib.contextmanager
    def _running(self, out: Path, words: Sequence[str]) -> Iterator[Run]:
        """A run that has ended, one way or another, when this is left."""
        run = Run(words, out, self.folder / f"{out.name}.log")
        try:
            yield run
        finally:
            run.kill()

    def verdict(self) -> str:
        saving = f"{self.while_saving} while saving"
        return f"proven: {self.made} kills ({saving}) in {self.rounds} rounds, nothing lost, every end is the same"

    def clear(self, is_new: bool) -> None:
        """Deletes the runs; the folder too if it was not there before."""
        for path in (*self.folder.glob("whole*"), *self.folder.glob("killed*")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if is_new:
            shutil.rmtree(self.folder, ignore_errors=True)


def _beginning(newest: int | None) -> str:
    return "starts afresh" if newest is None else f"resumes from {newest}"


def _names(run: Path) -> set[str]:
    """What a save changes in a run's folder."""
    try:
        return {name for name in os.listdir(run) if name.startswith((STAGING, "checkpoint-"))}
    except OSError:
        return set()


# ---- the command ----


def _separate_checkpoints(words: list[str]) -> list[str]:
    """A further flag where a configuration keeps its checkpoints outside the output_dir: the runs must not share them.

    Raises:
        NotTestable: train.py refuses the flags.
    """
    if any(word.partition("=")[0] == "--resume_from_checkpoint" for word in words):
        raise NotTestable("`--resume_from_checkpoint` is what is tested here; leave it out")
    asked = [sys.executable, str(TRAIN), *words, "--print_config", "json"]
    done = subprocess.run(asked, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        print(done.stderr.strip(), file=sys.stderr)
        raise NotTestable("")
    elsewhere = json.loads(done.stdout).get("checkpointing.dirpath", {}).get("value")
    if not elsewhere:
        return []
    print(f"checkpointing.dirpath: {elsewhere} would be shared by all runs; here each has its own", flush=True)
    return ["--set", "checkpointing.dirpath=null"]


def _room(folder: str | None) -> tuple[Path, bool]:
    """Where the runs go, and whether that folder is new.

    Raises:
        NotTestable: it cannot be made, or holds such runs already.
    """
    if folder is None:
        return Path(tempfile.mkdtemp(prefix="killtest-")), True
    path = Path(os.path.abspath(os.path.expanduser(folder)))
    is_new = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        found = sorted(name for name in os.listdir(path) if name.startswith(("whole", "killed")))
    except OSError as error:
        raise NotTestable(f"`--output_dir {folder}` cannot be used: {error.strerror}") from error
    if found:
        raise NotTestable(f"`--output_dir {folder}` holds {found[0]} already; name another folder or delete it")
    return path, is_new


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and a closed terminal leave as Ctrl-C does: no run is left behind."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number of kills; give 1 or more")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.killtest",
        usage="python -m trainer.killtest --training_config FILE [--kills N] [--seed N] [--keep] [flags of train.py …]",
        description=__doc__,
        epilog="Every other flag goes to train.py; the training's own seed is --set seed=…. Leave out "
        "validate_before_resume, which logs further evaluations.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--kills", type=_count, default=20, help="how many kills [20]")
    parser.add_argument("--seed", type=int, default=0, help="of the random instants [0]")
    parser.add_argument(
        "--keep", action="store_true", help="keep all runs; without it only those that prove a fault stay"
    )
    parser.add_argument(
        "--output_dir", "--out_dir", metavar="FOLDER", help="where the runs go: on the file system that is to be tested"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
