"""Scores of signals and their baselines, against torch, SciPy and distributions that are known."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from data.signals.tokenizers import MuLaw
from metrics.classification import GroupedClassMetric
from metrics.signal_baselines import PRIOR_WEIGHTS, Autoregression, baseline_bits, counted, fitted_t, prior_weight
from metrics.signals import BitsPerSample, ValueErrors


def test_bits_are_those_of_torch():
    """In total and by channel, whatever the batches; labels of -100 count nowhere."""
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 3, 7, 11, generator=random)
    labels = torch.randint(0, 11, (5, 3, 7), generator=random)
    labels[1, 0, 2:], labels[:, 2, -1] = -100, -100
    channels = torch.tensor([[0, 1, 2], [2, 0, 1], [0, 1, 2], [1, 2, 0], [0, 1, 2]])
    metric = BitsPerSample(["a", "b", "c"], ids_per_sample=0.5)
    metric.reset()
    for rows in (slice(0, 2), slice(2, 5)):
        metric.update({"labels": labels[rows], "channels": channels[rows]}, {"logits": logits[rows]})
    values, known = metric.compute(), labels != -100
    nats = F.cross_entropy(logits[known], labels[known]).item() * 0.5
    assert values["bits_per_sample"] == pytest.approx(nats / np.log(2), rel=1e-5)
    assert values["perplexity"] == pytest.approx(np.exp(nats), rel=1e-5)
    for number, name in enumerate("abc"):
        chosen = known & (channels == number)[..., None]
        expected = F.cross_entropy(logits[chosen], labels[chosen]).item() * 0.5 / np.log(2)
        assert values[f"bits_per_sample.{name}"] == pytest.approx(expected, rel=1e-5)
    assert set(metric.directions) == set(values) and set(metric.directions.values()) == {"min"}


def test_errors_of_values():
    random = torch.Generator().manual_seed(0)
    prediction, signal, labels = torch.randn(3, 2, 2, 9, generator=random)
    labels[0, 0, 4:] = torch.nan
    metric, known = ValueErrors(), labels.isfinite()
    metric.update({"signal": signal, "labels": labels}, {"prediction": prediction})
    mse, of_last = F.mse_loss(prediction[known], labels[known]), F.mse_loss(signal[known], labels[known])
    assert metric.compute() == pytest.approx({"rmse": mse.sqrt().item(), "improvement": (1 - mse / of_last).item()})


def test_accuracy_by_subject():
    metric = GroupedClassMetric(["x", "y"], ["ann", "bob", "eve"])
    logits = torch.tensor([[2.0, 0], [0, 1], [1, 0], [0, 1], [3, 0]])
    batch = {"labels": torch.tensor([0, 1, 1, 1, 0]), "group": torch.tensor([0, 0, 0, 2, 2])}
    metric.update(batch, {"logits": logits})
    values = metric.compute()
    assert (values["accuracy"], values["balanced_accuracy"]) == pytest.approx((0.8, (1 + 2 / 3) / 2))
    assert values.keys() == metric.directions.keys()
    assert metric.per_group() == [
        {"group": "ann", "samples": 3, "accuracy": pytest.approx(2 / 3)},
        {"group": "eve", "samples": 2, "accuracy": 1.0},
    ]


# ---- baselines ----


def chain(length, seed):
    """A Markov chain over 4 ids that stays with probability .7."""
    random = np.random.default_rng(seed)
    moves = np.where(random.random(length) < 0.7, 0, random.integers(1, 4, length))
    return moves.cumsum() % 4


def test_bigrams_find_the_entropy_of_a_chain():
    """And unigrams that all ids are equally frequent; an unknown id is no pair."""
    train, held_out = chain(200_000, 0)[None], chain(50_000, 1)[None]
    held_out[0, 1000:2000] = -1
    bits = counted(lambda: [train], lambda: [held_out], 4, is_ordered=True)
    entropy = -(0.7 * np.log2(0.7) + 0.3 * np.log2(0.1))
    assert bits["bigram"] == pytest.approx(entropy, abs=0.02) and bits["unigram"] == pytest.approx(2, abs=0.01)


def test_the_smoothing_of_bigrams_leaves_one_out():
    """Against the likelihood of each pair after it is taken out of the table."""
    random = np.random.default_rng(0)
    pairs = random.poisson(1.5, (6, 6)).astype(float)
    unigram = random.dirichlet(np.ones(6))
    likelihood = dict.fromkeys(PRIOR_WEIGHTS, 0.0)
    for now, following in np.argwhere(pairs > 0):
        others = pairs.copy()
        others[now, following] -= 1
        for weight in PRIOR_WEIGHTS:
            chance = (others[now, following] + weight * unigram[following]) / (others[now].sum() + weight)
            likelihood[weight] += pairs[now, following] * np.log(chance)
    assert prior_weight(pairs, unigram) == max(likelihood, key=likelihood.get) not in (1.0, 128.0)


@pytest.mark.slow
def test_changes_find_the_entropy_of_a_walk():
    """Steps of -1, 0, 1 from anywhere; the two channels have tables of their own."""
    random = np.random.default_rng(0)
    steps = random.choice([-1, 0, 1], (2, 100_000), p=[0.25, 0.5, 0.25])
    steps[1] = 0
    walk = 500 + steps.cumsum(1)
    bits = counted(lambda: [walk[:, :80_000]], lambda: [walk[:, 80_000:]], 2000, is_ordered=True)
    assert bits["last value"] == pytest.approx([1.5, 0], abs=0.02) and "bigram" in bits
    assert "last value" not in counted(lambda: [walk], lambda: [walk], 2000, is_ordered=False)


@pytest.mark.slow
def test_the_fitted_distribution_is_that_of_scipy():
    residuals = stats.t.rvs(3.0, scale=0.2, size=20_000, random_state=0)
    degrees, scale = fitted_t(residuals)
    theirs = stats.t.fit(residuals, floc=0)
    assert degrees == 3.0 and scale == pytest.approx(theirs[2], rel=0.03)


def autoregressive(count, seed):
    random, values = np.random.default_rng(seed), np.zeros(count)
    noise = stats.t.rvs(4, scale=0.1, size=count, random_state=random)
    for place in range(2, count):
        values[place] = 1.6 * values[place - 1] - 0.8 * values[place - 2] + noise[place]
    return values[None]


@pytest.mark.slow
def test_an_autoregression_finds_the_process():
    """Its weights, as by least squares; its bits, as with the true process; its forecast, as by hand."""
    values, tokenizer = autoregressive(20_000, 0), MuLaw(256, 3.0)
    model = Autoregression(2).fit(lambda: [values])
    columns = np.c_[np.ones(19_998), values[0, 1:-1], values[0, :-2]]
    expected = np.linalg.lstsq(columns, values[0, 2:], rcond=None)[0]
    assert model.weights[0] == pytest.approx(expected, abs=1e-3)
    a, b = model.weights[0][1:]
    first = model.weights[0][0] + a * values[0, -1] + b * values[0, -2]
    second = model.weights[0][0] + a * first + b * values[0, -1]
    assert model.forecast(values, 2)[0] == pytest.approx([first, second])

    ids = tokenizer.encode(values)
    bits = baseline_bits(lambda: [ids[:, :15_000]], lambda: [ids[:, 15_000:]], 256, tokenizer.decode)
    edges = np.r_[-np.inf, tokenizer.decode(np.arange(1, 256) - 0.5), np.inf]
    mean = 1.6 * values[0, 15_001:-1] - 0.8 * values[0, 15_000:-2]
    at = ids[0, 15_002:]
    true = -np.log2(stats.t.cdf((edges[at + 1] - mean) / 0.1, 4) - stats.t.cdf((edges[at] - mean) / 0.1, 4)).mean()
    assert bits["ar8"] == pytest.approx(true, abs=0.05) and bits["ar32"] == pytest.approx(true, abs=0.05)
    assert bits["ar8"] < bits["bigram"] - 0.1 and bits["bigram"] < bits["unigram"]


def test_values_that_are_missing_are_no_rows():
    values = autoregressive(3000, 1)
    whole = Autoregression(2).fit(lambda: [values]).weights[0]
    values[0, 500:510] = np.nan
    model = Autoregression(2)
    rows = list(model.rows([values]))
    assert len(rows[0][1]) == 3000 - 2 - 12
    assert model.fit(lambda: [values]).weights[0] == pytest.approx(whole, abs=0.01)


# ---- short recordings ----


@pytest.mark.slow
def test_all_short_recordings_are_scored_and_what_cannot_be_is_nan():
    """200 recordings of 24 ids as one of 4,800, up to the pairs across their ends; 24 ids are too few for order 32."""
    random = np.random.default_rng(0)
    trials = [random.integers(0, 4, (1, 24)) + 4 * (number > 100) for number in range(200)]
    bits = baseline_bits(lambda: trials, lambda: trials, 8, MuLaw(8, 5.0).decode)
    joined = np.concatenate(trials, 1)
    assert bits["unigram"] == pytest.approx(counted(lambda: [joined], lambda: [joined], 8, True)["unigram"], abs=0.01)
    assert bits["unigram"] == pytest.approx(3, abs=0.02) and bits["bigram"] == pytest.approx(2, abs=0.02)
    assert bits["ar8"] < 3.5 and np.isnan(bits["ar32"])


@pytest.mark.slow
def test_a_channel_without_known_ids_has_no_bits():
    held_out = np.stack([chain(500, 0), np.full(500, -1)])
    train = np.stack([chain(5000, 1), chain(5000, 2)])
    bits = baseline_bits(lambda: [train], lambda: [held_out], 4, MuLaw(4, 5.0).decode)
    for name, values in bits.items():
        assert np.isfinite(values[0]) and np.isnan(values[1]), name
