"""Score a checkpoint as `eval_runner` says: metrics on a part of one split, and free runs."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

from storage.atomic import write_json
from trainer.callbacks.log_files import json_number
from trainer.dataloading.samplers import limited_dataset
from trainer.evaluator import evaluate
from trainer.serialization import rng_state


@dataclass(frozen=True)
class CheckpointScores:
    """`eval_runner`: (folder of a checkpoint) -> its scores on some batches of a split, and of its free runs.

    Args:
        load: (folder) -> the model, in evaluation mode.
        dataset, collate, metric, loss: See `evaluator.evaluate`. The training loop has a metric of its own.
        batches, batch_size: How much of the data set is scored.
        free_run: (model, data set, folder) -> scores, may write files into the folder; None: no free run.
        out: Gets a folder for each checkpoint, with summary.json.
    """

    load: Callable[[Path], Any]
    dataset: Any
    collate: Any
    metric: Any
    loss: Any
    batches: int
    batch_size: int
    free_run: Callable[[Any, Any, Path], Mapping[str, float]] | None
    out: Path

    @classmethod
    def of(cls, section: Any, bundle: Any, name: str, dataset: Any, steps: int, **others: Any) -> CheckpointScores:
        """By the section `eval_runner` and a `Bundle`.

        Args:
            name, dataset: Of the split.
            steps: Time steps of the free runs; 0: none.
            others: `load`, `loss`, `batch_size`, `out`.
        """
        free_run, generator = None, section.generator
        if steps:
            rollouts = {"seed": generator.seed, "samples": generator.rollouts_per_context}
            free_run = partial(bundle.free_run, steps=steps, **rollouts, **generator.sampling.options)
        metric = copy.deepcopy(bundle.metrics.get(name))
        return cls(
            dataset=dataset,
            collate=bundle.collate,
            metric=metric,
            batches=section.max_batches,
            free_run=free_run,
            **others,
        )

    def __call__(self, checkpoint: Path) -> dict[str, float]:
        folder = self.out / checkpoint.name
        part = limited_dataset(self.dataset, self.batches, self.batch_size)
        with rng_state.preserved():
            model = self.load(checkpoint)
            device = next(model.parameters()).device
            values = evaluate(model, part, self.collate, self.batch_size, device, self.metric, self.loss)
            if self.free_run is not None:
                values |= self.free_run(model, self.dataset, folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "summary.json", {name: json_number(value) for name, value in values.items()})
        return values


# ---- the callback ----


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
