"""The order of samples: reproducible, resumable, and distributed as it says."""

import numpy as np
import pytest
import torch

from data.samplers import MixtureSampler

LENGTHS = [[10, 90], [400]]


def sampler(lengths=LENGTHS, weights=None, episode_first=False, samples_per_epoch=None, seed=0):
    return MixtureSampler(lengths, weights, episode_first, samples_per_epoch, seed)


@pytest.mark.parametrize("weights", [None, [1, 3]])
@pytest.mark.parametrize("episode_first", [False, True])
def test_the_order_is_a_function_of_seed_and_epoch(weights, episode_first):
    one, other = (
        sampler(weights=weights, episode_first=episode_first),
        sampler(weights=weights, episode_first=episode_first),
    )
    first = list(one)
    one.set_epoch(3)
    third = list(one)
    other.set_epoch(3)
    assert list(other) == third != first, "reaching an epoch directly gives what passing through gives"
    assert list(sampler(weights=weights, episode_first=episode_first, seed=1)) != first
    assert all(0 <= index < 500 for index in first) and len(first) == len(one) == 500


def test_position_resumes_an_epoch_once():
    one = sampler()
    whole = list(one)
    one.set_position(123)
    assert list(one) == whole[123:]
    assert list(one) == whole


def test_without_weights_each_step_comes_once_an_epoch():
    assert sorted(sampler()) == list(range(500))
    twice = np.bincount(list(sampler(samples_per_epoch=1000)), minlength=500)
    assert set(twice.tolist()) == {2}
    assert len(set(sampler(samples_per_epoch=50))) == len(sampler(samples_per_epoch=50)) == 50


def test_weights_are_the_shares():
    order = np.asarray(list(sampler(weights=[3, 1], samples_per_epoch=20000)))
    assert (order < 100).mean() == pytest.approx(0.75, abs=0.01)
    # within the first group steps are uniform: its second episode has 9 steps for each of the first's
    assert (order < 10).sum() / (order < 100).sum() == pytest.approx(0.1, abs=0.01)


def test_episode_first_draws_short_episodes_as_often():
    order = np.asarray(list(sampler(episode_first=True, samples_per_epoch=9000)))
    shares = [np.mean(order < 10), np.mean((order >= 10) & (order < 100)), np.mean(order >= 100)]
    np.testing.assert_allclose(shares, 1 / 3, atol=1e-3)
    steps = np.bincount(order[order >= 100] - 100, minlength=400)
    assert steps.min() > 0 and steps.max() < 30, "steps within an episode are uniform"


def test_a_round_of_episodes_visits_each_once():
    order = np.asarray(list(sampler([[5] * 50], episode_first=True, samples_per_epoch=50)))
    assert sorted(order // 5) == list(range(50))


def test_shards_of_a_distributed_run_partition_the_order():
    from accelerate.data_loader import prepare_data_loader

    def loader(process):
        loader = torch.utils.data.DataLoader(range(500), batch_size=5, sampler=sampler())
        return prepare_data_loader(loader, num_processes=2, process_index=process, put_on_device=False)

    shards = [loader(process) for process in range(2)]
    for epoch in (0, 1):
        for shard in shards:
            shard.set_epoch(epoch)
        reference = sampler()
        reference.set_epoch(epoch)
        pairs = zip(*[[batch.tolist() for batch in shard] for shard in shards], strict=True)
        assert [index for pair in pairs for batch in pair for index in batch] == list(reference)
