#!/usr/bin/env python3
"""Stands in for the interpreter ($PYTHON) where only the job script is tested: writes down how training was started.

Each start is a line of $STARTS: `{"words": the arguments after train.py, "restarts": …}`. $STAND_IN says what it then
does: `exit CODE`, or `train`, which waits for a signal, takes a second to save, and exits with 75; started again, it
exits with 0. In the launcher's place it starts one process and exits with 1 where that fails, as the launcher does; the
launcher's own words are its line then. All else is run by the real interpreter, $INTERPRETER.
"""

import json
import os
import signal
import subprocess
import sys
import time

LAUNCHER = ["-m", "accelerate.commands.launch"]
restarts = int(os.environ.get("SLURM_RESTART_COUNT", 0))


def note(words):
    with open(os.environ["STARTS"], "a", encoding="utf-8") as file:
        file.write(json.dumps({"words": words, "restarts": restarts}) + "\n")


def launch(words):
    """The process; it hears SIGUSR1 only as the launcher's processes do: by the job's own hand."""
    script = next(number for number, word in enumerate(words) if word.endswith("/train.py"))
    note(words[:script])
    return bool(subprocess.run([__file__, *words[script:]]).returncode)


def train(what, code=0):
    """What train.py does, as far as a job script can tell."""
    told = []
    for each in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(each, lambda number, frame: told.append(number))
    note(sys.argv[2:])
    if what == "exit" or restarts:
        return int(code)
    while not told:
        time.sleep(0.05)
    time.sleep(1)
    return 75


def print_config(words):
    """What the script asks of train.py first."""
    named = words.index("--resume_from_checkpoint") + 1 if "--resume_from_checkpoint" in words else None
    print(json.dumps({"resume_from_checkpoint": {"value": named and words[named]}}))


def check():
    """The exit code of `train.py --check`: 2 if $STAND_IN is `refuse`."""
    if os.environ["STAND_IN"] != "refuse":
        return 0
    print(f"error: wrong for {os.environ['WORLD_SIZE']} processes", file=sys.stderr)
    return 2


if sys.argv[-2:] == ["--print_config", "json"]:
    sys.exit(print_config(sys.argv[2:]))
if sys.argv[-1] == "--check":
    sys.exit(check())
if sys.argv[1:3] == LAUNCHER:
    sys.exit(launch(sys.argv[3:]))
if not sys.argv[1].endswith("/train.py"):
    os.execv(os.environ["INTERPRETER"], [os.environ["INTERPRETER"], *sys.argv[1:]])
sys.exit(train(*os.environ["STAND_IN"].split()))
