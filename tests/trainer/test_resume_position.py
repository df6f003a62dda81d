"""A resumed run goes on in mid-epoch without reading what it has read already."""

import contextlib
import itertools
import math

import pytest
import torch
import transformers.trainer
from tiny_training import EpochSampler, Samples, make_trainer
from torch.utils.data import BatchSampler, DataLoader
from transformers import TrainerCallback

from trainer.dataloading.dataloaders import DataPosition, start_at


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


@pytest.mark.slow
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
    assert start_at(made, 2, None) is made and sampler.position == 2 * 4 * 3


def test_batches_that_are_split_are_skipped_to_as_before():
    """There a batch holds the samples of all processes: a position counted by processes would be too far."""
    made, sampler = loader(24, processes=3)
    made.batch_sampler.split_batches = True
    assert start_at(made, 2, lambda each, batches: "skipped") == "skipped" and sampler.position == 0
    plain = DataLoader(Samples(8), batch_size=4)  # its sampler has no position
    assert start_at(plain, 1, lambda each, batches: "skipped") == "skipped"


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True])
def test_outside_a_training_transformers_skips_its_own_way(tmp_path, fails):
    """Another Trainer of the same process is none of ours."""
    own, inside = transformers.trainer.skip_first_batches, []

    class Looks(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            inside.append(transformers.trainer.skip_first_batches)
            if fails:
                raise ZeroDivisionError

    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.add_callback(Looks())
    with pytest.raises(ZeroDivisionError) if fails else contextlib.nullcontext():
        trainer.train()
    assert inside and inside[0] is not own and transformers.trainer.skip_first_batches is own


# ---- other batches than until now ----


def drawn(trainer, checkpoint=None):
    """The indices of the samples that a training takes, a list for each step."""
    steps = {}
    train = trainer.training_step

    def training_step(model, inputs, items=None):
        steps.setdefault(trainer.state.global_step, []).extend(inputs["index"].tolist())
        return train(model, inputs, items)

    trainer.training_step = training_step
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    return list(steps.values())


def epochs(count, seed=42):
    """The samples of one epoch after another."""
    for epoch in itertools.count():
        sampler = EpochSampler(count, seed)
        sampler.set_epoch(epoch)
        yield list(sampler)


RUN = {"count": 24, "save_strategy": "steps"}


@pytest.mark.slow
@pytest.mark.parametrize("split", [(8, 1), (4, 2), (2, 4)])
def test_the_same_batch_made_otherwise_goes_on_with_the_same_samples(tmp_path, split):
    """Stopped in the middle of an epoch: the weights are those of the run that was never stopped."""
    options = {**RUN, "max_steps": 8, "save_steps": 4, "per_device_train_batch_size": 8}
    whole = make_trainer(tmp_path, **options)
    order = drawn(whole)
    size, accumulated = split
    options |= {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated}
    resumed = make_trainer(tmp_path / "again", **options)
    assert drawn(resumed, tmp_path / "checkpoint-4") == order[4:]
    after, before = weights(resumed), weights(whole)
    assert all(torch.allclose(after[name], before[name], atol=1e-6) for name in before)


@pytest.mark.slow
@pytest.mark.parametrize("size", [4, 12, 3, 16, 5])
def test_another_batch_goes_on_by_samples(tmp_path, size):
    """After 4 steps of 8 of 24 samples the second epoch has 8 behind it, whatever a step is from there on; a step that
    these end in is taken whole."""
    steps = []
    for epoch in itertools.islice(epochs(24), 12):
        steps += [epoch[at : at + size] for at in range(0, 24, size)]
    behind = math.ceil(24 / size) + 8 // size  # steps of the new size
    options = {**RUN, "lr_scheduler_type": "constant", "max_steps": 4, "save_steps": 4}
    drawn(make_trainer(tmp_path, **options, per_device_train_batch_size=8))
    options |= {"per_device_train_batch_size": size, "max_steps": 12, "save_steps": 6}
    resumed = make_trainer(tmp_path, **options)
    assert drawn(resumed, tmp_path / "checkpoint-4") == steps[behind : behind + 8]
    once_more = make_trainer(tmp_path, **options)  # from there its own steps count
    assert drawn(once_more, tmp_path / "checkpoint-6") == steps[behind + 2 : behind + 8]


@pytest.mark.slow
def test_another_seed_draws_another_order_from_the_same_place(tmp_path):
    options = {**RUN, "max_steps": 8, "save_steps": 4, "per_device_train_batch_size": 8}
    drawn(make_trainer(tmp_path, **options))
    found = drawn(make_trainer(tmp_path, **options, seed=7), tmp_path / "checkpoint-4")
    order = sum(itertools.islice(epochs(24, seed=7), 3), [])
    assert sum(found, []) == order[32:64]


def test_position_by_hand():
    before = DataPosition(steps_per_epoch=3, samples_per_epoch=22, samples_per_step=8)
    assert before.place(7) == (2, 1) and before.samples(7) == 2 * 22 + 8
    now = DataPosition(steps_per_epoch=6, samples_per_epoch=22, samples_per_step=4)
    after = before.followed_by(now, 7)
    assert after.place(7) == (2, 2) and after.samples(7) == before.samples(7)
    assert after.followed_by(now, 9) is after  # the same again: nothing moves
    assert after.followed_by(before, 9).place(9) == (2, 2)


@pytest.mark.slow
def test_cadences_of_now_count(tmp_path):
    """transformers takes the checkpoint's logging_steps, eval_steps and save_steps up with its state."""
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 4, "lr_scheduler_type": "constant"}
    make_trainer(tmp_path, **options).train()
    options |= {"max_steps": 10, "save_steps": 3, "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 5}
    resumed = make_trainer(tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    logged = [line["step"] for line in resumed.state.log_history if "loss" in line]
    assert logged == [2, 4, 5, 6, 7, 8, 9, 10]
    assert [line["step"] for line in resumed.state.log_history if "eval_loss" in line] == [5, 10]
    assert {int(path.name[11:]) for path in tmp_path.glob("checkpoint-*")} == {4, 6, 9, 10}
