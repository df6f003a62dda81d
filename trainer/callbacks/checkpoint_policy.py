"""Which checkpoints of a run are kept and which are deleted: functions of a list, without files and without torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

# Why a checkpoint was saved; of two reasons for one step the later in this tuple counts.
PREEMPTION = "preemption"  # the run was preempted: nothing else would have saved this step
POLICY = "policy"  # by ModelCheckpoint: a good evaluation, an epoch's end, the end of training
PERIODIC = "periodic"  # by `save_steps`, or at an epoch's end by `save_strategy: epoch`
REQUESTED = "requested"  # by another callback
REASONS = (PREEMPTION, POLICY, PERIODIC, REQUESTED)


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint of this run.

    Attributes:
        step: The optimizer step that it was saved at.
        reason: One of REASONS.
        resumable: Whether training can continue from it (it holds more than the model).
        scores: Finite values of the monitors at that step, by monitor.
    """

    step: int
    reason: str = REQUESTED
    resumable: bool = True
    scores: Mapping[str, float] = field(default_factory=dict)


def ranked(checkpoints: Sequence[SavedCheckpoint], monitor: str, mode: str) -> list[SavedCheckpoint]:
    """Return the checkpoints that have a score of a monitor, the best first; of equal scores the earlier is better."""
    sign = 1 if mode == "min" else -1
    scored = [checkpoint for checkpoint in checkpoints if monitor in checkpoint.scores]
    return sorted(scored, key=lambda checkpoint: (sign * checkpoint.scores[monitor], checkpoint.step))


def protected_steps(
    checkpoints: Sequence[SavedCheckpoint], newest: int, modes: Mapping[str, str], save_top_k: int
) -> set[int]:
    """Return the steps that no limit may delete: the newest, the newest resumable one, and the best of each monitor.

    Args:
        checkpoints: Those that are complete, sorted by step.
        newest: Step of the newest checkpoint.
        modes: `min` or `max` by monitor.
        save_top_k: How many of the best are kept for each monitor; with -1 the limit may delete all but the best one.
    """
    steps = {newest, *[checkpoint.step for checkpoint in checkpoints if checkpoint.resumable][-1:]}
    count = 1 if save_top_k < 0 else save_top_k
    for monitor, mode in modes.items():
        steps |= {checkpoint.step for checkpoint in ranked(checkpoints, monitor, mode)[:count]}
    return steps


def superfluous_steps(checkpoints: Sequence[SavedCheckpoint], protected: Collection[int], save_top_k: int) -> list[int]:
    """Return the steps that ModelCheckpoint saved and has no more use for, in the order of `checkpoints`.

    One that is neither among the best nor the newest goes, except with `save_top_k: -1`; a periodic one goes only if
    some are the best (`save_top_k` above 0). One that only a preemption saved goes as soon as the next one is complete.
    What other callbacks requested stays, up to `save_total_limit`.
    """
    reasons = (
        (PREEMPTION, POLICY, PERIODIC) if save_top_k > 0 else (PREEMPTION, POLICY) if save_top_k == 0 else (PREEMPTION,)
    )
    candidates = [checkpoint.step for checkpoint in checkpoints if checkpoint.reason in reasons]
    return [step for step in candidates if step not in protected]


def steps_over_limit(steps: Sequence[int], limit: int | None, protected: Collection[int]) -> list[int]:
    """Return the oldest steps that exceed `save_total_limit`; never the newest nor a protected one.

    Args:
        steps: Of all checkpoints in the folder, also those of other runs, sorted.
        limit: None or 0: there is no limit.
    """
    excess = max(len(steps) - limit, 0) if limit else 0
    return [step for step in steps[:-1] if step not in protected][:excess]
