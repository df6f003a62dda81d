"""Batches of several processes: every sample once, the same number of batches in each process."""

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from tiny_training import EpochSampler
from torch.utils.data import BatchSampler, SequentialSampler

from trainer.dataloading.samplers import EvalBatches, TrainBatches, share_train_batches

SIZES = [(samples, batch, processes) for samples in (1, 3, 8, 22, 24) for batch in (1, 4) for processes in (2, 3)]


class Loader:
    def __init__(self, shard):
        self.batch_sampler = shard


def train_shard(samples, batch, processes, process, drop_last=False):
    inner = BatchSampler(EpochSampler(samples, seed=3), batch, drop_last)
    loader = share_train_batches(Loader(BatchSamplerShard(inner, processes, process)))
    return loader.batch_sampler


@pytest.mark.parametrize(("samples", "batch", "processes"), SIZES)
def test_a_step_of_several_processes_has_the_samples_of_one(samples, batch, processes):
    shards = [train_shard(samples, batch, processes, process) for process in range(processes)]
    own = [list(shard) for shard in shards]
    whole = list(BatchSampler(EpochSampler(samples, seed=3), batch * processes, False))
    assert [len(batches) for batches in own] == [len(whole)] * processes == [len(shard) for shard in shards]
    for step, indices in enumerate(whole):
        parts = [batches[step] for batches in own]
        assert sorted(index for part in parts for index in part if index >= 0) == sorted(indices)
        assert all(len(part) == 1 and -1 - part[0] in indices for part in parts if part[0] < 0)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_drop_last_drops_the_whole_incomplete_step():
    shards = [list(train_shard(22, 4, 2, process, drop_last=True)) for process in (0, 1)]
    assert [[len(batch) for batch in batches] for batches in shards] == [[4, 4]] * 2


@pytest.mark.parametrize(("samples", "batch", "processes"), SIZES)
def test_an_evaluation_counts_each_sample_once(samples, batch, processes):
    made = [EvalBatches(SequentialSampler(range(samples)), batch, process, processes) for process in range(processes)]
    counted = [index for batches in made for part in list(batches)[: batches.counted] for index in part]
    assert sorted(counted) == list(range(samples))
    assert len({len(list(batches)) for batches in made} | {len(batches) for batches in made}) == 1


def test_a_loader_of_one_process_stays_as_it_is():
    sampler = BatchSampler(EpochSampler(8, seed=0), 4, False)
    assert share_train_batches(Loader(sampler)).batch_sampler is sampler
    assert share_train_batches(torch.utils.data.DataLoader(range(4), batch_size=2)).batch_size == 2


def test_the_batches_are_those_of_the_sampler_in_turn():
    assert list(TrainBatches(range(7), 2, 2, False)) == [[0, 1], [2, 3], [4], [5, 6]]
    assert list(TrainBatches(range(5), 2, 2, False)) == [[0, 1], [2, 3], [-5], [4]]
