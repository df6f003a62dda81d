"""The commands of an installed Keel: `keel-train …` is `python train.py …`, and so on for the other entries."""

from __future__ import annotations

import runpy


def train() -> None:
    _run("train")


def evaluate() -> None:
    _run("eval")


def predict() -> None:
    _run("predict")


def prepare() -> None:
    _run("prepare")


def report() -> None:
    _run("report")


def _run(entry: str) -> None:
    """Run an entry as the main module: signals during its imports, exit codes and worker processes are the script's."""
    runpy.run_module(entry, run_name="__main__", alter_sys=True)
