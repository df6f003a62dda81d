"""Statistics and the maps made from them, against numpy by hand."""

import json

import numpy as np
import pytest

from data.statistics import FIELDS, Normalizer, compute

KINDS = ("zscore", "min_max", "percentiles", "identity")


@pytest.fixture
def values() -> np.ndarray:
    generator = np.random.default_rng(0)
    return generator.normal(size=(500, 4)) * [1.0, 30.0, 0.5, 2.0] + [0.0, 100.0, -3.0, 1e-3]


def fit(values, kind, mask=None, minimum_std=1e-2):
    return Normalizer.fit(values, kind, mask, minimum_std)


def test_each_kind_does_what_it_says(values):
    zscore = fit(values, "zscore").encode(values)
    np.testing.assert_allclose(zscore.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(zscore.std(axis=0), 1, rtol=1e-5)
    min_max = fit(values, "min_max").encode(values)
    np.testing.assert_allclose([min_max.min(axis=0), min_max.max(axis=0)], [[-1] * 4, [1] * 4], rtol=1e-6)
    percentiles = fit(values, "percentiles").encode(values)
    quantiles = np.quantile(percentiles, [0.01, 0.99], axis=0)
    np.testing.assert_allclose(quantiles, [[-1] * 4, [1] * 4], rtol=1e-5)
    assert percentiles.max() > 1, "what lies outside the quantiles is not clipped"
    np.testing.assert_array_equal(fit(values, "identity").encode(values), values.astype(np.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_inverts_encoding(values, kind):
    normalizer = fit(values, kind)
    decoded = normalizer.decode(normalizer.encode(values))
    assert decoded.dtype == np.float64
    np.testing.assert_allclose(decoded, values, atol=np.ptp(values, axis=0).max() * 1e-6)


@pytest.mark.parametrize("kind", ["zscore", "min_max", "percentiles"])
@pytest.mark.parametrize("constant", [0.0, 0.1, -1e9, 3.3e-7])
def test_a_constant_dimension_is_0_and_comes_back_exactly(kind, constant):
    values = np.column_stack([np.full(333, constant), np.arange(333.0)])
    normalizer = fit(values, kind)
    encoded = normalizer.encode(values)
    assert np.all(encoded[:, 0] == 0)
    assert np.all(normalizer.decode(encoded)[:, 0] == constant)


def test_rounding_noise_is_not_stretched():
    values = np.column_stack([0.3 + np.random.default_rng(0).normal(size=100) * 1e-9, np.arange(100.0)])
    for kind in ("zscore", "min_max", "percentiles"):
        assert np.abs(fit(values, kind).encode(values)[:, 0]).max() < 1e-6


def test_percentiles_that_coincide_use_the_range():
    gripper = np.zeros(1000)
    gripper[:5] = 1.0
    encoded = fit(gripper[:, None], "percentiles").encode(gripper[:, None])
    assert sorted(set(encoded[:, 0].tolist())) == [-1, 1]


def test_minimum_std_is_the_floor():
    idle = np.random.default_rng(0).normal(size=(1000, 1)) * 1e-4
    assert fit(idle, "zscore", minimum_std=1e-2).encode(idle).std() == pytest.approx(1e-2, rel=0.1)
    assert fit(idle, "zscore", minimum_std=1e-6).encode(idle).std() == pytest.approx(1, rel=1e-4)


def test_a_masked_dimension_passes_unchanged(values):
    encoded = fit(values, "zscore", [True, False, True, True]).encode(values)
    np.testing.assert_array_equal(encoded[:, 1], values[:, 1].astype(np.float32))
    assert encoded[:, 0].std() == pytest.approx(1, rel=1e-5)
    with pytest.raises(ValueError, match="2 entries but the signal has 4"):
        fit(values, "zscore", [True, False])


def test_float64_keeps_a_small_signal_on_a_large_offset():
    values = 1e6 + np.random.default_rng(0).normal(size=(1000, 1)) * 0.1
    assert fit(values, "zscore").encode(values).std() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_json_keeps_every_bit(values, kind):
    saved = fit(values, kind, [True, False, True, True])
    loaded = Normalizer.from_dict(json.loads(json.dumps(saved.to_dict())), "state")
    assert loaded.encode(values).tobytes() == saved.encode(values).tobytes()


@pytest.mark.parametrize(
    "damage",
    [
        lambda saved: saved.pop("std"),
        lambda saved: saved.update(kind="zcsore"),
        lambda saved: saved.update(mean=[0.0]),
        lambda saved: saved.update(mean=None),
        lambda saved: saved["min"].__setitem__(0, float("nan")),
    ],
)
def test_a_damaged_file_is_refused(values, damage):
    saved = fit(values, "zscore").to_dict()
    damage(saved)
    with pytest.raises(ValueError, match="`state` in statistics.json is damaged"):
        Normalizer.from_dict(saved, "`state`")
    with pytest.raises(ValueError, match="damaged"):
        Normalizer.from_dict(None, "`state`")


def test_compute_agrees_with_numpy(values):
    expected = [
        values.mean(0),
        values.std(0),
        values.min(0),
        values.max(0),
        *np.quantile(values, [0.01, 0.99], 0),
    ]
    for name, want in zip(FIELDS, expected, strict=True):
        np.testing.assert_array_equal(compute(values)[name], want)
