"""Scoring: the counts, the interval, the worker processes, and what a policy may not do."""

import functools
import math

import numpy as np
import pytest
from simulated_policies import Broken, Expert, Still, counted_still

from sim.aloha import make
from sim.aloha.config import Config
from sim.rollout import EpisodeResult, rollout, score, wilson_interval

CUBE = Config(task="transfer_cube")
SHORT = Config(task="transfer_cube", episode_steps=3)


def quiet(line):
    pass


@pytest.mark.slow
def test_the_expert_scores_the_same_with_any_number_of_workers():
    make_policy = functools.partial(Expert, CUBE, jitter=1.0)
    alone, two = (rollout(make_policy, CUBE, 3, seed=1000, num_workers=count, report=quiet) for count in (0, 2))
    assert alone == two
    assert [result.seed for result in two] == [1000, 1001, 1002]
    assert all(result.strict_success and result.max_reward == 4 for result in two)
    assert all(300 < result.steps_to_success <= 400 for result in two)


def test_a_policy_that_does_nothing_scores_nothing():
    results = rollout(Still, SHORT, 5, seed=0, num_workers=0, report=quiet)
    assert score(results) == {
        "success_rate": 0.0,
        "success_low": 0.0,
        "success_high": pytest.approx(0.4345, abs=1e-4),
        "strict_success_rate": 0.0,
        "strict_success_low": 0.0,
        "strict_success_high": pytest.approx(0.4345, abs=1e-4),
        "mean_steps_to_success": None,
        "mean_max_reward": 0.0,
        "mean_return": 0.0,
        "episodes": 5,
    }


@pytest.mark.slow
def test_every_episode_counts_and_each_worker_makes_one_policy(tmp_path):
    """Seven episodes on two workers: no remainder is dropped."""
    log, lines = tmp_path / "made", []
    make_policy = functools.partial(counted_still, log)
    results = rollout(make_policy, SHORT, 7, seed=3, num_workers=2, report=lines.append)
    assert [result.seed for result in results] == list(range(3, 10))
    made = log.read_text().split()
    assert len(made) == len(set(made)) == 2
    assert lines[-1] == "scored 7 of 7 episodes"


def test_only_the_filmed_episodes_keep_their_trajectory():
    results = rollout(Still, SHORT, 3, seed=0, num_workers=0, film_episodes=2, report=quiet)
    assert [getattr(result.trajectory, "shape", None) for result in results] == [(4, 23), (4, 23), None]


def test_the_score_by_hand():
    def result(success, strict, steps, rewards):
        return EpisodeResult(0, "lift", success, strict, steps, max(rewards), sum(rewards))

    scored = score(
        [
            result(True, True, 200, [0, 4, 4]),
            result(True, False, 300, [0, 4, 2]),
            result(False, False, None, [0, 1, 0]),
            result(False, False, None, [0, 0, 0]),
        ]
    )
    assert scored["success_rate"] == 0.5 and scored["strict_success_rate"] == 0.25
    assert scored["mean_steps_to_success"] == 250 and scored["episodes"] == 4
    assert scored["mean_max_reward"] == 9 / 4 and scored["mean_return"] == 15 / 4


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (10, 10), (45, 50), (1, 1), (263, 500)])
def test_wilson_bounds_solve_the_score_equation(successes, trials):
    """A bound is the rate p whose normal test rejects the observed rate just so: (x/n - p)² = z² p (1 - p) / n."""
    z = 1.959963984540054
    for bound in wilson_interval(successes, trials):
        difference = (successes / trials - bound) ** 2 - z * z * bound * (1 - bound) / trials
        assert math.isclose(difference, 0, abs_tol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_broken_policy_names_the_episode_and_the_step(num_workers):
    with pytest.raises(ValueError, match="episode with seed 40: the policy's action at step 0 .* nan"):
        rollout(Broken, SHORT, 1, seed=40, num_workers=num_workers, report=quiet)


@pytest.mark.parametrize(("episodes", "seed"), [(1, -1), (2, 2**32 - 1)])
def test_seeds_that_the_simulator_does_not_have_are_refused(episodes, seed):
    with pytest.raises(ValueError, match="seed must be"):
        rollout(Still, SHORT, episodes, seed=seed, num_workers=0)


def test_a_diverging_simulation_is_a_failed_episode_not_a_crash(monkeypatch):
    """Whether wild targets make MuJoCo diverge depends on its version, so the error itself is brought about."""
    from dm_control.rl import control

    environment = make(Config(task="transfer_cube"))
    observation = environment.reset(0)
    genuine, calls = environment._environment.step, []

    def step(action):
        calls.append(action)
        if len(calls) == 3:
            raise control.PhysicsError("mjWARN_BADQACC")
        return genuine(action)

    monkeypatch.setattr(environment._environment, "step", step)
    while not environment.done:
        observation = environment.step(np.zeros(14))
    assert environment.diverged and not environment.success and not environment.strict_success
    assert len(calls) == 3 and np.isfinite(observation["observations/qpos"]).all()
    environment.reset(0)
    assert not environment.diverged and not environment.done
