"""Optuna chooses the settings of runs, and which to end early; its study is `OUT/study.db`. Needs the extra `sweep`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loader.errors import ConfigError
from loader.schema.hyper_arguments import SweepArguments
from loader.sweep.jobs import Job
from loader.sweep.space import Interval, Option, Space

FILE = "study.db"


def require_optuna() -> None:
    """Raise ConfigError if Optuna is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(f"--sampler optuna needs Optuna ({error}): pip install 'keel[sweep]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)


class OptunaStudy:
    """Trial N of the study is run N of the sweep. Every method may be repeated, as after a kill between two writes."""

    def __init__(self, folder: Path, space: Space, asked: SweepArguments, mode: str) -> None:
        import optuna

        pruner = {
            "median": optuna.pruners.MedianPruner,
            "halving": optuna.pruners.SuccessiveHalvingPruner,
            "none": optuna.pruners.NopPruner,
        }[asked.pruner]
        self.space, self.seed = space, asked.sampler_seed
        self.trials: dict[int, Any] = {}
        # SQLite, because a write that a kill interrupts must not damage the file, as it can a journal.
        self.study = optuna.create_study(
            storage=f"sqlite:///{folder.absolute() / FILE}",
            study_name="sweep",
            direction={"min": "minimize", "max": "maximize"}[mode],
            pruner=pruner(),
            load_if_exists=True,
        )

    def values(self, index: int) -> tuple[str, ...]:
        """The value of each varying key for a new run; the seed, the run's number and the results so far decide."""
        import optuna

        seed = random.Random(f"{self.seed} {index}").randrange(2**32)  # of neighbouring seeds, nothing alike
        self.study.sampler = optuna.samplers.TPESampler(seed=seed)
        trial = self._trial(index) or self.study.ask()
        self.trials[index] = trial
        return tuple(self._suggest(trial, key, option) for key, option in self.space.varying.items())

    def _trial(self, index: int) -> Any:
        """The open trial of a run; None if it does not exist yet, or is finished."""
        import optuna

        if index not in self.trials:
            stored: Sequence[Any] = self.study.get_trials(deepcopy=False)
            if index >= len(stored) or stored[index].state.is_finished():
                return None
            self.trials[index] = optuna.trial.Trial(self.study, stored[index]._trial_id)
        return self.trials[index]

    @staticmethod
    def _suggest(trial: Any, key: str, option: Option) -> str:
        if not isinstance(option, Interval):
            return trial.suggest_categorical(key, option)
        if option.is_int:
            return option.shown(trial.suggest_int(key, int(option.low), int(option.high), log=option.is_log))
        return option.shown(trial.suggest_float(key, option.low, option.high, log=option.is_log))

    def should_prune(self, index: int, step: int, value: float) -> bool:
        """Report an evaluation of a run; returns whether to end the run."""
        trial = self._trial(index)
        if trial is None:  # a run that had failed before
            return False
        if step not in self.study.trials[index].intermediate_values:
            trial.report(value, step)
        return trial.should_prune()

    def tell(self, index: int, job: Job, value: float | None) -> None:
        """Record how a run ended; nothing for one that will go on."""
        from optuna.trial import TrialState

        if (job.is_finished or job.has_failed) and self._trial(index) is not None:
            state = (
                TrialState.PRUNED if job.is_pruned else TrialState.COMPLETE if job.exit_code == 0 else TrialState.FAIL
            )
            self.study.tell(index, value if state == TrialState.COMPLETE else None, state=state)
            del self.trials[index]
