"""Roll a policy out in the simulator on unseen seeds, and compute its success rates.

Shapes: T control steps, Q numbers in the simulator's position vector.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from sim.contract import Environment, simulator
from sim.workers import progress, run


class Policy(Protocol):
    def reset(self) -> None:
        """Begin a new episode."""

    def __call__(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        """The action for an observation of the simulator."""


@dataclasses.dataclass
class EpisodeResult:
    seed: int
    task: str
    success: bool  # the goal was reached at some step: the standard criterion
    strict_success: bool  # the goal still held at the last step
    steps_to_success: int | None  # control steps until the goal was first reached
    max_reward: int
    episode_return: int  # sum of the rewards of all steps
    # (T + 1, Q) simulator positions; only of the episodes to film
    trajectory: np.ndarray | None = dataclasses.field(default=None, repr=False)


def rollout(
    make_policy: Callable[[], Policy],
    config: Any,
    num_episodes: int,
    seed: int,
    num_workers: int | None = None,
    film_episodes: int = 0,
    report: Callable[[str], None] = print,
) -> list[EpisodeResult]:
    """Results of the episodes with seeds seed … seed + num_episodes - 1, in this order.

    The number of workers changes no result, provided that the policy depends only on its observations since `reset`.

    Args:
        make_policy: Called once in each worker process, so it must pickle: a function of a module, or a
            `functools.partial` of one.
        num_workers: None takes a process for each core, 0 runs in this one.
        film_episodes: How many results, the first ones, get a trajectory for `sim.film`.

    Raises:
        ValueError: A seed is out of range, the simulator is missing, or the policy's action is no valid one.
    """
    if not 0 <= seed <= 2**32 - num_episodes:
        raise ValueError(f"seed must be from 0 to {2**32 - num_episodes}, got {seed}")
    start = functools.partial(_roller, make_policy, config)
    tasks = [(seed + i, i < film_episodes) for i in range(num_episodes)]
    with contextlib.closing(run(start, tasks, num_workers)) as pairs:
        results = dict(progress(pairs, num_episodes, "scored", report))
    return [results[task] for task in tasks]


def expert_successes(
    config: Any, num_episodes: int, seed: int, num_workers: int | None = None, report: Callable[[str], None] = print
) -> list[bool]:
    """Whether the scripted expert succeeds, undisturbed, in the same episodes as `rollout`."""
    seeds = [seed + i for i in range(num_episodes)]
    with contextlib.closing(run(functools.partial(_expert, config), seeds, num_workers)) as pairs:
        results = dict(progress(pairs, num_episodes, "expert", report))
    return [results[one] for one in seeds]


def _expert(config: Any) -> Callable[[int], bool]:
    room = simulator(config)
    environment = room.make(config)

    def succeeds(seed: int) -> bool:
        room.demonstrate(environment, seed, 0.0)
        return environment.success

    return succeeds


def _roller(make_policy: Callable[[], Policy], config: Any) -> Callable[[tuple[int, bool]], EpisodeResult]:
    environment, policy = simulator(config).make(config), make_policy()
    return lambda task: _episode(environment, policy, *task)


def _episode(environment: Environment, policy: Policy, seed: int, keep_trajectory: bool) -> EpisodeResult:
    observation = environment.reset(seed)
    policy.reset()
    rewards, positions = [], [environment.positions]
    while not environment.done:
        try:
            observation = environment.step(policy(observation))
        except ValueError as error:
            raise ValueError(f"episode with seed {seed}: {error}") from error
        rewards.append(environment.reward)
        if keep_trajectory:
            positions.append(environment.positions)
    return EpisodeResult(
        seed=seed,
        task=environment.task,
        success=environment.success,
        strict_success=environment.strict_success,
        steps_to_success=environment.steps_to_success,
        max_reward=max(rewards),
        episode_return=sum(rewards),
        trajectory=np.stack(positions) if keep_trajectory else None,
    )


def score(results: Sequence[EpisodeResult]) -> dict[str, float | int | None]:
    """Success rates with their Wilson 95 % intervals, as JSON values."""
    episodes = len(results)
    assert episodes, "score needs at least one episode"
    scores = {}
    for name in ("success", "strict_success"):
        scores |= rate(name, [getattr(result, name) for result in results])
    tasks = sorted({result.task for result in results})
    if len(tasks) > 1:
        for task in tasks:
            scores |= rate(f"{task}/success", [result.success for result in results if result.task == task])
    steps = [result.steps_to_success for result in results if result.steps_to_success is not None]
    return {
        **scores,
        "mean_steps_to_success": sum(steps) / len(steps) if steps else None,
        "mean_max_reward": sum(result.max_reward for result in results) / episodes,
        "mean_return": sum(result.episode_return for result in results) / episodes,
        "episodes": episodes,
    }


def rate(name: str, successes: list[bool]) -> dict[str, float]:
    """A success rate with its interval, under names that begin with `name`."""
    low, high = wilson_interval(sum(successes), len(successes))
    return {f"{name}_rate": sum(successes) / len(successes), f"{name}_low": low, f"{name}_high": high}


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson 1927, JASA 22, p. 209).

    Unlike the normal approximation it stays within 0 … 1 and has a width at 0 and at 100 % success.
    """
    from scipy.stats import binomtest

    interval = binomtest(successes, trials).proportion_ci(0.95, "wilson")
    return float(interval.low), float(interval.high)
