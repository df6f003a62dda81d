"""Which checkpoints a list of them keeps."""

import random

import pytest

from trainer.callbacks.checkpoint_policy import (
    POLICY,
    PREEMPTION,
    REQUESTED,
    SavedCheckpoint,
    protected_steps,
    ranked,
    steps_over_limit,
    superfluous_steps,
)

MODES = {"loss": "min", "score": "max"}
SAVED = [
    SavedCheckpoint(1, POLICY, True, {"loss": 5.0, "score": 1.0}),
    SavedCheckpoint(2, REQUESTED, True, {"loss": 4.0, "score": 3.0}),
    SavedCheckpoint(3, POLICY, True, {"loss": 4.0}),
    SavedCheckpoint(4, PREEMPTION, True, {}),
    SavedCheckpoint(5, POLICY, False, {"loss": 9.0, "score": 3.0}),
]


def test_ranking():
    assert [checkpoint.step for checkpoint in ranked(SAVED, "loss", "min")] == [2, 3, 1, 5]  # of equal ones the earlier
    assert [checkpoint.step for checkpoint in ranked(SAVED, "score", "max")] == [2, 5, 1]
    assert ranked(SAVED, "accuracy", "max") == []


@pytest.mark.parametrize(
    ("save_top_k", "protected", "superfluous"),
    [
        (0, {4, 5}, [1, 3]),  # the newest, and the newest resumable one
        (1, {2, 4, 5}, [1, 3]),
        (2, {2, 3, 4, 5}, [1]),
        (3, {1, 2, 3, 4, 5}, []),
        (-1, {2, 4, 5}, []),
    ],
)
def test_protected_and_superfluous(save_top_k, protected, superfluous):
    assert protected_steps(SAVED, 5, MODES, save_top_k) == protected
    assert superfluous_steps(SAVED, protected, save_top_k) == superfluous


def test_a_preemption_checkpoint_goes_when_the_next_is_there():
    saved = [*SAVED[:4], SavedCheckpoint(6)]
    for save_top_k in (-1, 0):
        protected = protected_steps(saved, 6, {}, save_top_k)
        assert 4 in superfluous_steps(saved, protected, save_top_k)


@pytest.mark.parametrize(
    ("limit", "protected", "over"),
    [
        (None, set(), []),
        (0, set(), []),
        (9, set(), []),
        (2, set(), [5, 20]),
        (1, set(), [5, 20, 100]),
        (1, {5}, [20, 100]),
        (2, {5, 20, 100}, []),
        (3, {5}, [20]),
    ],
)
def test_the_oldest_are_over_the_limit(limit, protected, over):
    assert steps_over_limit([5, 20, 100, 1000], limit, protected) == over


def test_the_limit_holds_for_any_steps():
    generator = random.Random(1)
    for _ in range(30):
        steps = sorted(generator.sample(range(1, 2000), 6))
        protected, limit = set(generator.sample(steps, 2)), generator.randrange(1, 7)
        left = set(steps) - set(steps_over_limit(steps, limit, protected))
        kept = protected | {steps[-1]}
        kept |= set(sorted(set(steps) - kept)[len(steps) - max(limit, len(kept)) :])
        assert left == kept
