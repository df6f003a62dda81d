"""The flags of a sweep, `train.py -m …`; none of them reaches the runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from loader.schema.hyper_arguments import RemembersGiven
from storage.config_keys import key


@dataclass
class SweepArguments(RemembersGiven):
    """How the combinations of the bare words' values are chosen, and how their runs are started."""

    multirun: bool = key(
        False, "Sweep: a run for each combination of the bare words' values, key=a,b; again: continue.", aliases=["-m"]
    )
    sampler: Literal["grid", "random", "optuna"] = key(
        "grid", "Which combinations: all; drawn at random; or by Optuna, from the results so far."
    )
    trials: int | None = key(None, "Number of runs of the samplers random and optuna.", ge=1)
    sampler_seed: int = key(0, "Seed of the samplers random and optuna.", ge=0, lt=2**31)
    objective: str = key("eval_loss", "Metric of the evaluations by which runs are compared; its best value counts.")
    objective_mode: Literal["min", "max"] | None = key(
        None, "Whether less or more of the objective is better; needed if the metric does not declare it."
    )
    pruner: Literal["median", "halving", "none"] = key(
        "median", "Optuna ends a run early: worse than the median, by successive halving, or never."
    )
    parallel: int = key(1, "Number of runs at the same time; under Slurm the most tasks at the same time.", ge=1)
    launcher: Literal["local", "slurm"] = key("local", "Start the runs here, or as one job array (scripts/slurm/).")
    slurm: str | None = key(None, "Options of sbatch for the job array: '--time=4:00:00 --gpus-per-node=1'.")
