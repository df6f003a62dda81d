"""Draw the order of training samples from one or several groups of episodes.

The order is a pure function of (seed, epoch), so that a resumed run draws what an uninterrupted one would have drawn,
and all processes of a distributed run draw the same.
"""

import numpy as np

from data.samplers import EpochSampler


class MixtureSampler(EpochSampler):
    """Sample indices of a dataset whose steps are stored episode after episode, group after group.

    Args:
        group_lengths: Of each group (one folder of episodes) the lengths of its episodes, in steps.
        weights: Probability of each group, in any unit; None draws every step equally often.
        episode_first: Draw an episode uniformly, then a step in it, so that short episodes count as much as
            long ones; otherwise draw uniformly over steps. Both go round by round: a round uses every episode
            (or step) of its group once before any comes again.
        samples_per_epoch: Length of an epoch; None for the number of steps.
        seed: Of the whole order.
    """

    def __init__(
        self,
        group_lengths: list[list[int]],
        weights: list[float] | None,
        episode_first: bool,
        samples_per_epoch: int | None,
        seed: int,
    ):
        assert all(group_lengths) and min(map(min, group_lengths)) > 0, "every group needs steps"
        self.lengths = [np.asarray(lengths, dtype=np.int64) for lengths in group_lengths]
        # Without weights one group of all episodes is the plain, exactly uniform case.
        if weights is None:
            self.lengths, weights = [np.concatenate(self.lengths)], [1.0]
        assert len(weights) == len(self.lengths) and min(weights) > 0, weights
        self.probabilities = np.asarray(weights, dtype=np.float64) / np.sum(weights)
        steps = [int(lengths.sum()) for lengths in self.lengths]
        self.group_starts = np.concatenate([[0], np.cumsum(steps)])
        self.episode_first = episode_first
        super().__init__(samples_per_epoch or sum(steps), seed)

    def order(self, generator: np.random.Generator) -> np.ndarray:
        groups = np.zeros(self.samples, dtype=np.int64)
        if len(self.lengths) > 1:
            groups = generator.choice(len(self.lengths), size=self.samples, p=self.probabilities)
        order = np.empty(self.samples, dtype=np.int64)
        for group, lengths in enumerate(self.lengths):
            chosen = np.flatnonzero(groups == group)
            draw = draw_episodes_first if self.episode_first else draw_steps
            order[chosen] = self.group_starts[group] + draw(lengths, len(chosen), generator)
        return order


def draw_steps(lengths: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Return (count,) step indices of one group, in rounds without replacement."""
    return rounds(int(lengths.sum()), count, generator)


def draw_episodes_first(lengths: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Return (count,) step indices of one group: episodes in rounds without replacement, steps independently."""
    episodes = rounds(len(lengths), count, generator)
    starts = np.cumsum(lengths) - lengths
    return starts[episodes] + generator.integers(0, lengths[episodes])


def rounds(items: int, count: int, generator: np.random.Generator) -> np.ndarray:
    """Return (count,) numbers below `items`: permutations one after another, the last one cut."""
    whole = -(-count // items)
    permutations = [generator.permutation(items) for _ in range(whole)]
    return np.concatenate([np.empty(0, np.int64), *permutations])[:count]
