"""The log of a run: files in its folder, a line for each log event on the console, a progress bar."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

from storage.atomic import write_text
from trainer.callbacks.metric_names import SPEEDS, find_metric


def drop_later_lines(path: Path, state: Any) -> None:
    """Keep only the JSON lines (with `step`) that a run resumed from `state`, a TrainerState, will not repeat."""
    if not path.exists():
        return
    # A power cut may leave anything at the end of a file.
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    kept = [line for line in lines if is_of_the_past(_record(line), state)]
    if len(kept) < len(lines):
        write_text(path, "".join(kept))


def is_of_the_past(record: Mapping[str, Any], state: Any) -> bool:
    """Whether a record with `step` was logged before the state was saved; at the state's own step, its log history
    tells whether the record is older."""
    step = record.get("step")
    if not isinstance(step, int) or step > state.global_step or state.global_step == 0:
        return False
    if step < state.global_step:
        return True
    entries = [entry for entry in state.log_history if entry.get("step") == step]
    if is_evaluation(record):
        return any(is_evaluation(entry) for entry in entries)
    names = {name for name, value in record.items() if value != ""}  # a table has all columns in each row
    return any(names <= entry.keys() for entry in entries)


def is_evaluation(record: Mapping[str, Any]) -> bool:
    """Whether a record has values of an evaluation."""
    return any(name.startswith("eval_") and value not in (None, "") for name, value in record.items())


def _record(line: str) -> dict[str, Any]:
    """The record in a line; empty if the line is damaged, as the last one of a killed process may be."""
    try:
        record = json.loads(line) if line.endswith("\n") else {}
        return record if isinstance(record, dict) else {}
    except (ValueError, RecursionError):
        return {}


def check_appendable(path: Path) -> None:
    """Check that a path is a readable and writable file, if it exists.

    Raises:
        ValueError: it is not.
    """
    if not path.exists():
        return
    try:
        if not path.is_file():
            raise ValueError(f"{path} is not a file, and the run would add to it; move it away")
        path.open("r+b").close()
    except OSError as error:
        raise ValueError(f"{path} cannot be added to: {error.strerror}; change its permissions, or move it") from None


def append(path: Path, text: str) -> None:
    """Append text to a file: all of it, or nothing if the disk is full.

    Raises:
        OSError: the file is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    content = text.encode("utf-8")
    with open(path, "ab", buffering=0) as file:
        end = file.tell()
        try:
            if file.write(content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(end)
            raise


def record_start(folder: Path, step: int, lines: Mapping[str, list[str]]) -> None:
    """Append a line about a start of the run to `starts.jsonl`: its time, its first step, and what it printed."""
    began = time.strftime("%Y-%m-%d %H:%M:%S %z")
    append(folder / "starts.jsonl", json.dumps({"time": began, "step": step, **lines}) + "\n")


def json_number(value: Any) -> Any:
    """Return the value as JSON can hold it: a number that is not finite as a string."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def write_files(folder: Path, files: Mapping[str, Any]) -> None:
    """Write each entry under its name: text as it is, other values as JSON."""
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content, indent=1, allow_nan=False) + "\n"
        write_text(folder / name, text)


# ---- callbacks ----


class LogFile(TrainerCallback):
    """A file of JSON lines with `step`, to which the first process appends while training runs."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drop the lines of steps that a resumed run will repeat."""
        if state.is_world_process_zero:
            drop_later_lines(self.path, state)


class MetricsFile(LogFile):
    """`OUT/metrics.jsonl`: one JSON object for each log event.

    A full disk does not end the training: what it cannot take is written with a later event.
    """

    def __init__(self, path: Path):
        super().__init__(path)
        self.waiting: list[dict[str, Any]] = []  # records that are not written yet

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs:
            self.waiting.append({"step": state.global_step, **logs})
            self._write()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.waiting:
            self._write()

    def _write(self) -> None:
        try:
            self._append(self.waiting)
            self.waiting = []
        except OSError as error:
            if len(self.waiting) == 1:
                tqdm.write(f"{self.path} cannot be written ({error.strerror}); its lines wait", file=sys.stderr)

    def _append(self, records: Sequence[dict[str, Any]]) -> None:
        lines = [{name: json_number(value) for name, value in record.items()} for record in records]
        append(self.path, "".join(json.dumps(line) + "\n" for line in lines))


class Console(TrainerCallback):
    """Prints one plain line for each log event.

    Args:
        monitors: Names of metrics that the run follows, as a user writes them; they are always shown.
    """

    MOST_METRICS = 10  # of an evaluation with more values, such as those of single labels, the usual ones are shown

    SHOWN = {
        "loss": "loss",
        "eval_loss": "eval_loss",
        "learning_rate": "lr",
        "grad_norm": "grad_norm",
        "skipped_steps": "skipped",
        "better_than_chance": "× chance",
        "eval_perplexity": "perplexity",
        "eval_bits_per_byte": "bits/byte",
        "samples_per_second": "samples/s",
        "tokens_per_second": "tokens/s",
        "step_ms": "step ms",
        "data_wait_ms": "waiting ms",
        "peak_memory_mb": "peak MB",
        "mfu": "mfu",
    }

    def __init__(self, monitors: Sequence[str] = ()) -> None:
        self.monitors = monitors
        self.started, self.first_step = 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started, self.first_step = time.monotonic(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        if names := self.shown(logs):
            tqdm.write(self.line(state, logs, names), file=sys.stderr)  # above a progress bar, if there is one

    def shown(self, logs: Mapping[str, Any]) -> list[str]:
        """The names to show: the usual figures, every loss (`loss_kl`, `eval_a_loss`), the monitored metrics, and what
        the metrics of an evaluation computed."""
        followed = {find_metric(monitor, logs) for monitor in self.monitors}
        scores = [name for name in logs if name.startswith(("eval_", "test_")) and not name.endswith(SPEEDS)]
        also = followed | set(scores if len(scores) <= self.MOST_METRICS else ())
        return [
            name for name in logs if name in self.SHOWN or name in also or "loss_" in name or name.endswith("_loss")
        ]

    def line(self, state: Any, logs: Mapping[str, Any], names: Sequence[str]) -> str:
        """`step 200/2000  loss 0.1204  kl 0.003  lr 9.5e-05  …  eta 1:42`."""
        words = [f"step {state.global_step}/{state.max_steps}"]
        for name in names:
            label, value = self.SHOWN.get(name) or name.replace("loss_", ""), logs[name]
            words.append(f"{label} {value:.4g}" if isinstance(value, float) else f"{label} {value}")
        done = state.global_step - self.first_step
        if done and "loss" in logs:
            left = (time.monotonic() - self.started) / done * (state.max_steps - state.global_step)
            words.append(f"eta {int(left // 60)}:{int(left % 60):02d}")
        return "  ".join(words)


class ProgressBar(Console):
    """Shows a progress bar below the lines."""

    bar: tqdm | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if state.is_world_process_zero:
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", dynamic_ncols=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
