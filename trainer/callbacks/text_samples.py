"""Sample text from a language model during training, whenever the validation loss is the best so far."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from storage.safe_read import escaped
from trainer.callbacks.log_files import LogFile, append
from trainer.distributed import is_sharded

FILE = "samples.jsonl"
LAYOUT = "\n\t"  # control characters that a terminal may get


class WriteSamples(LogFile):
    """Prints samples and appends them to OUT/samples.jsonl, a line each: `{"step", "eval_loss", "text"}`.

    If a model fails to write, one line is printed and training continues.

    Args:
        model: The model itself, without the wrapper that it is trained in.
        write: (model, seed) -> texts; leaves training's random generators alone.
        folder: The run's folder.
        seed: Of the run; each step samples with its own seed.
    """

    def __init__(self, model: Any, write: Callable[[Any, int], list[str]], folder: Path, seed: int):
        super().__init__(folder / FILE)
        self.model, self.write, self.seed = model, write, seed

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        loss = metrics.get("eval_loss", math.nan)
        earlier = [line["eval_loss"] for line in state.log_history if "eval_loss" in line]
        is_best = math.isfinite(loss) and all(not loss > other for other in earlier)
        is_first = state.is_world_process_zero
        if not (is_best and state.global_step and (is_first or is_sharded(self.model))):
            return
        try:
            texts = self.write(self.model, self.seed + state.global_step)
        except Exception as error:  # `generate` of a model from elsewhere may raise anything
            reason = " ".join(str(error).split()) or type(error).__name__
            if is_first:
                tqdm.write(f"no sample at step {state.global_step}: {reason}", file=sys.stderr)
            return
        if not is_first:  # it was needed for its part of the weights only
            return
        for text in texts:
            tqdm.write(f"sample at step {state.global_step}: {escaped(text, LAYOUT)}", file=sys.stderr)
        lines = [json.dumps({"step": state.global_step, "eval_loss": loss, "text": text}) + "\n" for text in texts]
        try:
            append(self.path, "".join(lines))
        except OSError as error:
            tqdm.write(f"{self.path} cannot be written: {error.strerror}", file=sys.stderr)
