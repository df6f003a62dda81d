"""What a run prints and writes while it trains: metrics.jsonl, a line for each log event, a progress bar."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

from trainer.callbacks.log_files import append, drop_later_lines, json_number
from trainer.callbacks.metric_names import SPEEDS, find_metric


class MetricsFile(TrainerCallback):
    """`OUT/metrics.jsonl`: one JSON object for each log event, with `step`. Only the first process writes.

    A full disk does not end the training: what it cannot take is written with a later event.
    """

    def __init__(self, path: Path):
        self.path = path
        self.waiting: list[dict[str, Any]] = []  # records that are not written yet

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drop the lines of steps that a resumed run will repeat."""
        if state.is_world_process_zero:
            drop_later_lines(self.path, state)

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

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log the last step of a run that has logged no loss: it is shorter than `logging_steps`."""
        if state.global_step >= state.max_steps and args.logging_strategy == "steps":
            control.should_log |= not any("loss" in entry for entry in state.log_history)

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
        super().on_step_end(args, state, control, **kwargs)
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
