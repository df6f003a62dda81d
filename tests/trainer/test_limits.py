"""Parts of an epoch: how many batches a loader really makes, and which samples they hold."""

import math

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from tiny_training import EpochSampler, Samples, make_trainer
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler
from transformers.trainer_callback import TrainerCallback

from trainer.callbacks.hooks import EveryNEpochs
from trainer.dataloading.samplers import LimitedSampler, SeededOrder, limited_dataset, limited_sampler


def batches_of(sampler, batch_size, processes, drop_last):
    """What accelerate gives to each process."""
    whole = BatchSampler(sampler, batch_size, drop_last)
    shards = [BatchSamplerShard(whole, processes, rank) if processes > 1 else whole for rank in range(processes)]
    return [list(shard) for shard in shards]


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("limit", [1, 2, 3, 50, 0.25, 0.5, 0.99, 1.0, None])
def test_each_process_makes_as_many_batches_as_asked(processes, drop_last, limit):
    samples, batch_size = 50, 4
    loader = {"batch": batch_size * processes, "drop_last": drop_last}
    there = len(batches_of(range(samples), batch_size, processes, drop_last)[0])
    sampler = limited_sampler(SequentialSampler(range(samples)), limit, **loader)
    wanted = there
    if isinstance(limit, int):
        wanted = min(limit, there)
    elif limit is not None:
        wanted = math.floor(there * limit)
    made = batches_of(sampler, batch_size, processes, drop_last)
    assert [len(each) for each in made] == [wanted] * processes
    assert len(sampler) == len(list(sampler))
    if wanted < there:
        assert sorted(i for each in made for batch in each for i in batch) == list(
            range(wanted * batch_size * processes)
        )
        assert len(limited_dataset(range(samples), limit, **loader)) == len(sampler)


def test_a_share_is_not_rounded_down_twice():
    assert len(limited_sampler(range(100), 0.29, batch=1)) == 29  # 0.29 * 100 is 28.999… in binary


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (0, "`limit_train_batches: 0` leaves nothing of 3 batches of 4 samples"),
        (0.0, "leaves nothing"),
        (0.3, "`limit_train_batches: 0.3` leaves nothing of 3 batches"),
        (1.5, "`limit_train_batches: 1.5` is a share and must be between 0 and 1"),
        (-1, "leaves nothing"),
    ],
)
def test_limits_that_leave_nothing(limit, message):
    with pytest.raises(ValueError, match=message):
        limited_sampler(range(10), limit, batch=4)
    with pytest.raises(ValueError, match="limit_val_batches"):
        limited_dataset(range(10), limit, batch=4)


def test_epoch_and_position_reach_the_sampler():
    inner = EpochSampler(20, seed=3)
    limited = limited_sampler(inner, 2, batch=4)
    assert isinstance(limited, LimitedSampler)
    for epoch in range(3):
        limited.set_epoch(epoch)
        whole = EpochSampler(20, seed=3)
        whole.set_epoch(epoch)
        assert list(limited) == list(whole)[:8]
        limited.set_position(5)
        assert list(limited) == list(whole)[5:8]
        assert list(limited) == list(whole)[:8]  # the position counts once


def test_a_sampler_that_knows_positions_is_asked_for_them():
    class Knows(EpochSampler):
        position = 0

        def set_position(self, samples_done):
            self.position = samples_done

        def __iter__(self):
            start, self.position = self.position, 0
            order = list(super().__iter__())
            self.made = order[start:]
            return iter(self.made)

    inner = Knows(20, seed=3)
    limited = LimitedSampler(inner, 8)
    plain = list(limited)
    limited.set_position(5)
    assert list(limited) == plain[5:] and len(inner.made) == 15  # the first five were not drawn again


def test_no_limit_is_the_sampler_itself():
    sampler, dataset = EpochSampler(10, 0), Samples(10)
    assert limited_sampler(sampler, 1.0, batch=4) is limited_sampler(sampler, 3, batch=4) is sampler
    assert limited_dataset(dataset, None, batch=4) is dataset


def test_a_limited_data_set_reads_whole_batches_as_before():
    class InBatches(Samples):
        def __getitems__(self, indices):
            return ("read together", list(indices))

    limited = limited_dataset(InBatches(10), 2, batch=4)
    loader = DataLoader(limited, batch_size=4, collate_fn=lambda batch: batch)
    assert list(loader) == [("read together", [0, 1, 2, 3]), ("read together", [4, 5, 6, 7])]


@pytest.mark.slow
def test_a_limited_run_resumes_as_it_was(tmp_path):
    """Two batches of an epoch's six, other ones in each epoch; killed within an epoch and at its end."""

    def train(folder, **options):
        seen = []
        trainer = make_trainer(folder, num_train_epochs=3, save_strategy="steps", save_steps=1)
        make = trainer.sampler
        trainer.sampler = lambda seed: limited_sampler(make(seed), 2, batch=4)
        collate = trainer.data_collator
        trainer.data_collator = lambda samples: (seen.append([int(s["index"]) for s in samples]), collate(samples))[1]
        trainer.train(**options)
        return trainer, seen

    whole, seen = train(tmp_path)
    assert whole.state.global_step == 6 and whole.state.epoch == 3.0
    expected = []
    for epoch in range(3):
        sampler = EpochSampler(22, 42)
        sampler.set_epoch(epoch)
        order = list(sampler)
        expected += [order[:4], order[4:8]]
    assert seen == expected
    for kill in (3, 4):
        again, _ = train(tmp_path, resume_from_checkpoint=str(tmp_path / f"checkpoint-{kill}"))
        for name, value in whole.model.state_dict().items():
            assert torch.equal(value, again.model.state_dict()[name])


def test_shuffled_evaluation_is_one_order():
    order = SeededOrder(len(Samples(30)), seed=5)
    assert len(order) == 30 and sorted(order) == list(range(30)) != list(order)
    assert list(order) == list(order) == list(SeededOrder(30, 5))
    assert list(order) != list(SeededOrder(30, 6))
    assert list(limited_sampler(order, 2, batch=4)) == list(order)[:8]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("epochs", "options", "steps"),
    [
        (1, {"num_train_epochs": 3}, [6, 12, 18]),
        (2, {"num_train_epochs": 5}, [12, 24]),
        (3, {"num_train_epochs": 2}, []),
        (2, {"num_train_epochs": 9, "max_steps": 21}, [12]),  # the fourth epoch ends at 24
        (1, {"num_train_epochs": 2, "gradient_accumulation_steps": 4}, [2, 4]),
    ],
)
def test_evaluation_at_each_nth_epochs_end(tmp_path, epochs, options, steps):
    trainer = make_trainer(tmp_path, **options)
    trainer.add_callback(EveryNEpochs(epochs))
    trainer.train()
    assert [line["step"] for line in trainer.state.log_history if "eval_loss" in line] == steps


@pytest.mark.slow
def test_a_resumed_run_evaluates_in_the_same_epochs(tmp_path):
    class SavesAt7(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_save = state.global_step == 7

    first = make_trainer(tmp_path, num_train_epochs=4)
    first.add_callback(SavesAt7())
    first.train()
    second = make_trainer(tmp_path, num_train_epochs=4)
    second.add_callback(EveryNEpochs(2))
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-7"))
    assert [line["step"] for line in second.state.log_history if "eval_loss" in line] == [12, 24]
