"""A resumed run goes on in mid-epoch without reading what it has read already."""

import pytest
import torch
from tiny_training import EpochSampler, Samples, make_trainer
from torch.utils.data import BatchSampler, DataLoader

from trainer.positions import started_at


class Positioned(EpochSampler):
    """Counts what it hands out, and can begin anywhere."""

    handed_out = 0
    position = 0

    def set_position(self, samples_done):
        self.position = samples_done

    def __iter__(self):
        start, self.position = self.position, 0
        for index in list(super().__iter__())[start:]:
            Positioned.handed_out += 1
            yield index


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_resumed_run_draws_only_what_is_left(tmp_path, accumulation):
    options = {"max_steps": 7, "save_strategy": "steps", "save_steps": 4, "gradient_accumulation_steps": accumulation}

    def trainer(folder):
        made = make_trainer(folder, count=32, **options)
        made.sampler = lambda seed: Positioned(32, seed)
        return made

    whole = trainer(tmp_path)
    whole.train()
    Positioned.handed_out = 0
    resumed = trainer(tmp_path / "again")
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    after, before = weights(resumed), weights(whole)
    assert all(torch.equal(after[name], before[name]) for name in before)
    needed = (7 - 4) * 4 * accumulation
    assert needed <= Positioned.handed_out <= needed + 4  # a loader looks one batch ahead


class Shard:
    """What accelerate makes of a batch sampler for several processes."""

    split_batches = False

    def __init__(self, batch_sampler, num_processes):
        self.batch_sampler, self.num_processes = batch_sampler, num_processes


def loader(count, processes):
    sampler = Positioned(count, seed=0)
    made = DataLoader(Samples(count), batch_sampler=BatchSampler(sampler, 4, drop_last=False))
    if processes > 1:
        made = type("Loader", (), {"batch_sampler": Shard(made.batch_sampler, processes)})()
    return made, sampler


def test_positions_count_the_samples_of_all_processes():
    made, sampler = loader(24, processes=3)
    assert started_at(made, 2, None) is made and sampler.position == 2 * 4 * 3


def test_an_uneven_end_is_skipped_to_as_before():
    """There processes are filled up with the epoch's first batches, which a position would hide."""
    made, sampler = loader(22, processes=3)
    assert started_at(made, 2, lambda each, batches: ("skipped", batches)) == ("skipped", 2)
    assert sampler.position == 0
    plain = DataLoader(Samples(8), batch_size=4)
    assert started_at(plain, 1, lambda each, batches: "skipped") == "skipped"
