"""Sweeps whose runs are a stand-in for train.py, `stand_in_training.py`."""

import csv
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ladi_folder import write_ladi

import train
from loader.command_line.entry import command_line
from loader.sweep import local as module

TESTS = Path(__file__).resolve().parent
DRIVER = """\
import sys
from pathlib import Path
import train
from loader.command_line.entry import command_line
from loader.sweep import local
local.ROOT = Path(sys.argv[1])
command_line(train.main, sys.argv[2:])
"""


class Sweep:
    """Starts sweeps whose runs are a stand-in for train.py."""

    def __init__(self, folder, monkeypatch):
        shutil.copy(TESTS / "stand_in_training.py", folder / "train.py")
        monkeypatch.setattr(module, "ROOT", folder)
        monkeypatch.setattr(module, "POLL", 0.02)
        self.folder, self.out, self.common = folder, folder / "out", [f"dataset_base_dir={write_ladi(folder / 'ladi')}"]

    def words(self, *words, codes=None, step_seconds=0.0, together=1):
        behaviour = {"codes": codes or {}, "step_seconds": step_seconds, "together": together}
        (self.folder / "behaviour.json").write_text(json.dumps(behaviour))
        return ["-m", *self.common, "--output_dir", str(self.out), *words]

    def __call__(self, *words, **behaviour):
        with pytest.raises(SystemExit) as stopped:
            command_line(train.main, self.words(*words, **behaviour))
        return stopped.value.code

    def process(self, *words, **behaviour):
        """The same in a process of its own, for signals."""
        command = [sys.executable, "-c", DRIVER, str(self.folder), *self.words(*words, **behaviour)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def starts(self, number):
        file = self.out / str(number) / "starts.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []

    def calls(self, number):
        return [start["words"] for start in self.starts(number)]

    def recorded(self):
        return json.loads((self.out / "sweep.json").read_text())["runs"]

    def rows(self):
        with open(self.out / "sweep.csv", newline="") as file:
            return list(csv.DictReader(file))

    def log(self, number):
        lines = (self.out / str(number) / "metrics.jsonl").read_text().splitlines()
        return {record["step"]: record["eval_loss"] for record in map(json.loads, lines)}


def wait_for(true, seconds=120):
    end = time.monotonic() + seconds
    while not (answer := true()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return answer


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
