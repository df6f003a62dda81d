"""docs/extending.md: its files are those of examples/my_lab, and all its commands run in a folder outside of Keel."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from documents import blocks
from forked_runs import server
from run_results import metrics

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples/my_lab"
BLOCKS = blocks(ROOT / "docs/extending.md")
FILES = {
    text.partition("\n")[0].removeprefix("# my_lab/"): text.partition("\n")[2]
    for language, text in BLOCKS
    if language in ("python", "yaml")
}


def test_the_page_shows_the_files_of_the_template():
    present = {path.name: path.read_text() for path in EXAMPLE.iterdir() if path.is_file()}
    assert present.pop("__init__.py") and present == FILES


@pytest.mark.slow
def test_the_commands_of_the_page(tmp_path):
    (tmp_path / "my_lab").mkdir()
    for name, text in FILES.items():
        (tmp_path / "my_lab" / name).write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    commands = [line for language, text in BLOCKS if language == "bash" for line in text.splitlines()]
    printed = {}
    for command in commands:
        words = shlex.split(command)
        assert words[0] == "python"
        if words[1] == "-c":
            words[0] = sys.executable
            done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
        else:
            words[1] = words[1] if words[1] == "-m" else str(ROOT / words[1])
            done = server()(words[1:], environment=environment, cwd=tmp_path)
        assert done.returncode == 0, (command, done.stderr)
        printed[command] = done.stdout
    accuracy, margin = (
        [*metrics(tmp_path / "runs" / run, "eval_accuracy").values()][-1] for run in ("table", "margin")
    )
    table = np.loadtxt(tmp_path / "table.csv", delimiter=",")
    majority = np.bincount(table[:, 2].astype(int)).max() / len(table)
    assert min(accuracy, margin) > 0.95 > majority
    scores = json.loads(printed[commands[-1]].splitlines()[-1])
    assert scores["accuracy"] == pytest.approx(accuracy)
