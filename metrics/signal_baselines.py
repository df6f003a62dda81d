"""What simple predictors reach on the same ids: bits a sample of each channel.

Each is fitted to the training split and scored on every id of a held-out one that has its past. Importing this needs
only NumPy.

Shapes: C channels, n ids of a block, V ids, p order of an autoregression.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np

Blocks = Callable[[], Iterable[np.ndarray]]  # blocks (C, n) of ids, -1 where unknown, or of values

ORDERS = (8, 32)
MOST_ROWS = 2**22  # ids of each channel that a baseline is fitted to: the first ones of the training split
MOST_BIGRAMS = 2**24  # table entries; of more channels and ids no bigrams are counted
MOST_RESIDUALS, MOST_FITTED = 20_000, 2**19  # of a block, and of all, that a distribution is fitted to
DEGREES = (1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0, 10.0, 20.0, 100.0)  # of freedom that are tried
PRIOR_WEIGHTS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)  # of unigrams in a row of bigrams, in ids
LEAST = 1e-9  # probability of an id


def baseline_bits(
    train: Blocks, held_out: Blocks, levels: int, decode: Callable[[np.ndarray], np.ndarray] | None
) -> dict[str, np.ndarray]:
    """Name of the baseline -> bits (C,).

    unigram: how often each id is; bigram: after which one (smoothed by unigrams); last value: how often it changes
    by how many levels; ar8, ar32: a linear autoregression of the channel's own values, whose residuals have Student's t
    distribution, integrated over each id's bin.

    NaN stands where a channel has no id to score, or all of training is shorter than the order of an autoregression.

    Args:
        levels: V.
        decode: Ids -> values, ordered; the edge of ids k - 1 and k is `decode(k - 0.5)`. None: ids are no levels of a
            value, and there are no baselines of values.
    """
    values = counted(train, held_out, levels, is_ordered=decode is not None)
    if decode is not None:
        edges = np.concatenate(([-np.inf], decode(np.arange(1, levels) - 0.5).astype(np.float64), [np.inf]))
        for order in ORDERS:
            values[f"ar{order}"] = Autoregression(order, values_of(decode)).fit(train).bits(held_out, edges)
    return values


def values_of(decode: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """Ids, -1 where unknown -> values, NaN there."""
    return lambda ids: np.where(ids < 0, np.nan, decode(np.maximum(ids, 0)))


def counted(train: Blocks, held_out: Blocks, levels: int, is_ordered: bool) -> dict[str, np.ndarray]:
    """The baselines that are tables of counts."""
    channels = len(next(iter(train())))
    has_bigrams = channels * levels**2 <= MOST_BIGRAMS
    single = np.zeros((channels, levels))
    pairs = np.zeros((channels, levels, levels)) if has_bigrams else None
    changes = np.zeros((channels, 2 * levels - 1))
    for channel, now, following in followed(first_rows(train)):
        single[channel] += np.bincount(following, minlength=levels)
        changes[channel] += np.bincount(following - now + levels - 1, minlength=2 * levels - 1)
        if has_bigrams:
            pairs[channel] += np.bincount(now * levels + following, minlength=levels**2).reshape(levels, levels)
    unigram = (single + 1) / (single + 1).sum(1, keepdims=True)
    weights = [prior_weight(*tables) for tables in zip(pairs, unigram, strict=True)] if has_bigrams else []
    # Of the changes that lead to an id at all: their sum is a difference of cumulative sums.
    change = (changes + 0.1) / (changes + 0.1).sum(1, keepdims=True)
    cumulative = np.concatenate((np.zeros((channels, 1)), change.cumsum(1)), axis=1)
    nats, count = {name: np.zeros(channels) for name in ("unigram", "bigram", "last value")}, np.zeros(channels)
    for channel, now, following in followed(held_out()):
        count[channel] += len(now)
        nats["unigram"][channel] -= np.log(unigram[channel, following]).sum()
        if has_bigrams:
            table, weight = pairs[channel], weights[channel]
            expected = table[now, following] + weight * unigram[channel, following]
            nats["bigram"][channel] -= np.log(expected / (table.sum(1)[now] + weight)).sum()
        first = levels - 1 - now
        reachable = cumulative[channel, first + levels] - cumulative[channel, first]
        nats["last value"][channel] -= np.log(change[channel, following + first] / reachable).sum()
    kept = ["unigram", *["bigram"] * has_bigrams, *["last value"] * is_ordered]
    return {name: bits_of(nats[name], count) for name in kept}


def bits_of(nats: np.ndarray, count: np.ndarray) -> np.ndarray:
    """(C,) bits of an id; NaN of a channel without one."""
    return np.divide(nats, count, out=np.full_like(nats, np.nan), where=count > 0) / math.log(2)


def first_rows(blocks: Blocks) -> Iterable[np.ndarray]:
    """Blocks until they have `MOST_ROWS` columns."""
    rows = 0
    for block in blocks():
        yield block
        rows += block.shape[1]
        if rows >= MOST_ROWS:
            return


def prior_weight(pairs: np.ndarray, unigram: np.ndarray) -> float:
    """The weight of the unigrams with which each pair of the table (V, V) is most likely, given all others."""
    now, following = np.nonzero(pairs)
    counts, rows, prior = pairs[now, following], pairs.sum(1)[now], unigram[following]

    def likelihood(weight: float) -> float:
        return float((counts * np.log((counts - 1 + weight * prior) / (rows - 1 + weight))).sum())

    return max(PRIOR_WEIGHTS, key=likelihood)


def followed(blocks: Iterable[np.ndarray]) -> Iterable[tuple[int, np.ndarray, np.ndarray]]:
    """(channel, known ids, the known ids that follow them) of each channel and block."""
    for block in blocks:
        for channel, ids in enumerate(block):
            known = (ids[:-1] >= 0) & (ids[1:] >= 0)
            yield channel, ids[:-1][known], ids[1:][known]


class Autoregression:
    """x(t) = a0 + a1 x(t-1) + … + ap x(t-p) + s·e, e of Student's t distribution, for each channel on its own.

    Args:
        values_of: Block -> its values, NaN where unknown.
    """

    def __init__(self, order: int, values_of: Callable[[np.ndarray], np.ndarray] = np.asarray):
        self.order, self.values_of = order, values_of

    def fit(self, train: Blocks) -> Autoregression:
        """Least squares, and the most likely degrees of freedom and scale of what is left."""
        size = self.order + 1
        squares: dict[int, np.ndarray] = {}
        products: dict[int, np.ndarray] = {}
        for channel, past, _, value in self.rows(first_rows(train)):
            squares[channel] = squares.get(channel, np.zeros((size, size))) + past.T @ past
            products[channel] = products.get(channel, np.zeros(size)) + past.T @ value
        ridge = 1e-6 * np.eye(size)
        self.weights = {channel: np.linalg.solve(squares[channel] + ridge, products[channel]) for channel in squares}
        left: dict[int, list[np.ndarray]] = {channel: [] for channel in self.weights}
        for channel, past, _, value in self.rows(first_rows(train)):
            left[channel].append((value - past @ self.weights[channel])[:: max(1, len(value) // MOST_RESIDUALS)])
        joined = {channel: np.concatenate(rows) for channel, rows in left.items()}
        self.noise = {channel: fitted_t(rows[:: -(-len(rows) // MOST_FITTED) or 1]) for channel, rows in joined.items()}
        return self

    def bits(self, held_out: Blocks, edges: np.ndarray) -> np.ndarray:
        """Bits of each channel's ids, whose bins have the edges (V + 1,)."""
        from scipy.special import stdtr

        channels = len(next(iter(held_out())))
        nats, count = np.zeros(channels), np.zeros(channels)
        for channel, past, ids, _ in self.rows(held_out()):
            if channel not in self.weights:
                continue  # all of training is shorter than the order
            mean, (degrees, scale) = past @ self.weights[channel], self.noise[channel]
            low, high = (stdtr(degrees, (edges[ids + side] - mean) / scale) for side in (0, 1))
            nats[channel] -= np.log(np.maximum(high - low, LEAST)).sum()
            count[channel] += len(ids)
        return bits_of(nats, count)

    def forecast(self, past: np.ndarray, steps: int) -> np.ndarray:
        """Values expected after the values (C, n): (C, steps)."""
        values = list(np.asarray(past, np.float64).T)
        weights = np.stack([self.weights[channel] for channel in range(len(past))])  # (C, p + 1)
        for _ in range(steps):
            latest = np.stack(values[: -self.order - 1 : -1], axis=1)
            values.append(weights[:, 0] + (weights[:, 1:] * latest).sum(1))
        return np.stack(values[-steps:], axis=1)

    def rows(self, blocks: Iterable[np.ndarray]) -> Iterable[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
        """(channel, 1 and the p values before each place, what the block has there, its values) where all are known."""
        for block in blocks:
            if block.shape[1] <= self.order:
                continue
            for channel, row in enumerate(block):
                values = self.values_of(row).astype(np.float64)
                windows = np.lib.stride_tricks.sliding_window_view(values, self.order + 1)
                known = np.isfinite(windows).all(1)
                past = windows[known, -2::-1]
                yield channel, np.c_[np.ones(len(past)), past], row[self.order :][known], windows[known, -1]


def fitted_t(residuals: np.ndarray) -> tuple[float, float]:
    """The most likely (degrees of freedom, scale) of Student's t distribution around 0."""
    best = (-math.inf, 1.0, 1.0)
    if not len(residuals):
        return best[1], best[2]
    squares = residuals**2
    for degrees in DEGREES:
        variance = max(float(np.median(squares)), 1e-12)
        for _ in range(30):  # expectation-maximisation of the scale
            variance = max(float(np.mean((degrees + 1) * squares / (degrees + squares / variance))), 1e-12)
        constant = (
            math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - math.log(degrees * math.pi * variance) / 2
        )
        likelihood = constant - (degrees + 1) / 2 * float(np.mean(np.log1p(squares / (degrees * variance))))
        best = max(best, (likelihood, degrees, math.sqrt(variance)))
    return best[1], best[2]
