"""Evaluate each checkpoint after it is written, with its own weights."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback


class EvaluateCheckpoints(TrainerCallback):
    """Calls `score(checkpoint)` and prints what it returns; a checkpoint that cannot be evaluated is one line.

    Args:
        score: (folder of the checkpoint) -> name -> value; leaves training's random generators alone.
        checkpoint_dir: Where the checkpoint-N folders lie.
    """

    def __init__(self, score: Callable[[Path], Mapping[str, float]], checkpoint_dir: Path):
        self.score, self.checkpoint_dir = score, checkpoint_dir

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        folder = self.checkpoint_dir / f"checkpoint-{state.global_step}"
        try:
            values = self.score(folder)
        except (ValueError, OSError) as error:
            tqdm.write(f"{folder.name} is not evaluated: {' '.join(str(error).split())}", file=sys.stderr)
            return
        shown = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in values.items())
        tqdm.write(f"{folder.name}: {shown}")
