"""Tuning finds the right size and leaves no trace."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import Regression, Samples, make_trainer

from trainer import batch_size_finder
from trainer.batch_size_finder import available_bytes, resident_bytes, restored, tune_batch_size

pytestmark = pytest.mark.slow  # whole small runs, many of them


class Restless(Regression):
    """A model with everything that a trial step could disturb."""

    def __init__(self, seed=0, most=None):
        super().__init__(seed, dropout=0.3)
        self.batch_norm = torch.nn.BatchNorm1d(4)
        self.register_buffer("seen", torch.zeros(()), persistent=False)
        self.calls, self.sizes, self.most = 0, [], most

    def forward(self, x, y, **context):
        if self.most is not None and len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nsecond line")
        self.calls += 1
        self.sizes.append(len(x))
        self.seen = self.seen + len(x)
        random.random(), np.random.rand(), torch.rand(1)
        return super().forward(self.batch_norm(x), y)


def everything(model):
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def values(model):
    return {name: each.detach().clone() for name, each in everything(model).items()}


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


@pytest.mark.parametrize("settings", [{"optim": "adamw_torch"}, {"optim": "adafactor"}, {"weight_decay": 0.1}])
def test_a_tuned_run_equals_one_that_was_not(tmp_path, settings):
    """Weights, statistics of batch normalization, dropout, order of the data and the log, bit for bit."""
    settings = {"num_train_epochs": 2, "logging_steps": 1, **settings}
    plain = make_trainer(tmp_path / "plain", Restless(), **settings)
    plain.train()
    tuned = make_trainer(tmp_path / "tuned", Restless(), **settings)
    state, optimizer = tuned.state, tuned.built_optimizer
    assert tune_batch_size(tuned, 4, 4) == 4
    assert tuned.built_optimizer is optimizer and not optimizer.state and tuned.state is state
    assert tuned.args.per_device_train_batch_size == 4
    tuned.train()
    assert_same(values(tuned.model), values(plain.model))
    losses = [[log["loss"] for log in each.state.log_history if "loss" in log] for each in (plain, tuned)]
    assert losses[0] == losses[1] and len(losses[0]) == 12
    terms = [[log["loss_error"] for log in each.state.log_history if "loss" in log] for each in (plain, tuned)]
    assert terms[0] == terms[1]


def test_nothing_is_left_behind(tmp_path):
    model = Restless(most=8)
    trainer = make_trainer(tmp_path, model)
    model.eval()
    model.linear.train()
    model.head.weight.requires_grad_(False)
    gradient = torch.ones(2)
    model.linear.bias.grad = gradient
    before, buffer = values(model), model.seen
    modes = [module.training for module in model.modules()]
    numbers = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert tune_batch_size(trainer, 2, 16) == 8
    assert_same(values(model), before)
    assert model.seen is buffer and model.calls == 0 and [each.training for each in model.modules()] == modes
    assert model.linear.bias.grad is gradient and gradient.tolist() == [1.0, 1.0]
    assert all(each.grad is None for name, each in model.named_parameters() if name != "linear.bias")
    assert random.getstate() == numbers[0] and np.random.get_state()[1].tolist() == numbers[1]
    assert torch.equal(torch.get_rng_state(), numbers[2])


@pytest.mark.parametrize(
    ("most", "start", "maximum", "found", "tried"),
    [
        (8, 2, 64, 8, [2, 2, 4, 4, 8, 8]),
        (13, 3, 64, 12, [3, 3, 6, 6, 12, 12]),
        (64, 2, 9, 8, [2, 2, 4, 4, 8, 8]),  # stopped by the maximum
        (64, 4, 64, 16, [4, 4, 8, 8, 16, 16]),  # 22 samples
        (64, 40, 64, 22, [22, 22]),
        (3, 16, 64, 2, [2, 2]),  # 16, 8 and 4 do not fit
    ],
)
def test_the_largest_that_fits(tmp_path, capfd, most, start, maximum, found, tried):
    model = Restless(most=most)
    assert tune_batch_size(make_trainer(tmp_path, model), start, maximum) == found
    assert model.sizes == tried
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"batch size {found} per device")
    reason = {8: "out of memory with 16: CUDA out of memory. Tried to allocate 2.00 GiB.", 13: "with 24"}.get(most)
    if most == 64:
        reason = "at most 9" if maximum == 9 else "the data set has 22"
    assert (reason or "out of memory with 4") in lines[0] or most == 13 and "the data set has 22" in lines[0]


def test_the_memory_of_a_cpu_is_respected(tmp_path, capfd, monkeypatch):
    """100 MB are free, so 50 may be used. A sample's activations take 3 MB; what does not grow with the batch, next to
    nothing. 16 take 48 MB and are tried, 32 would take 96."""
    model = Restless()
    trainer = make_trainer(tmp_path, model, count=200)
    monkeypatch.setattr(batch_size_finder, "available_bytes", lambda: 100 * 10**6)
    monkeypatch.setattr(batch_size_finder, "resident_bytes", lambda: 10**9)
    monkeypatch.setattr(batch_size_finder, "peak_memory", lambda device: 10**9 + 3 * 10**6 * max(model.sizes))
    assert tune_batch_size(trainer, 2, 128) == 16
    assert max(model.sizes) == 16  # 32 was never tried
    assert "twice as many would take 92 MB of the 48 MB that may be used" in capfd.readouterr().err


def test_what_does_not_grow_is_not_doubled(tmp_path, monkeypatch):
    """40 MB of gradients and optimizer state, 1 MB a sample, of 50 MB: 8 fit, 16 would not."""
    model = Restless()
    trainer = make_trainer(tmp_path, model, count=200)
    monkeypatch.setattr(batch_size_finder, "available_bytes", lambda: 100 * 10**6)
    monkeypatch.setattr(batch_size_finder, "resident_bytes", lambda: 0)
    monkeypatch.setattr(batch_size_finder, "peak_memory", lambda device: 10**6 * (40 + max(model.sizes)))
    train = batch_size_finder._train
    monkeypatch.setattr(batch_size_finder, "_train", lambda trainer, size: train(trainer, size) * 0 + 40 * 10**6)
    assert tune_batch_size(trainer, 2, 128) == 8


def test_processes_of_one_machine_share_its_memory(tmp_path, monkeypatch):
    model = Restless()
    trainer = make_trainer(tmp_path, model, count=200)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr(batch_size_finder, "available_bytes", lambda: 100 * 10**6)
    monkeypatch.setattr(batch_size_finder, "resident_bytes", lambda: 0)
    monkeypatch.setattr(batch_size_finder, "peak_memory", lambda device: 3 * 10**6 * max(model.sizes))
    assert tune_batch_size(trainer, 2, 128) == 4


def test_gradients_and_optimizer_state_are_what_is_fixed(tmp_path):
    """AdamW: a gradient, two moments and a step number for each weight, of 4 bytes each."""
    trainer = make_trainer(tmp_path, optim="adamw_torch")
    weights = [parameter.numel() for parameter in trainer.model.parameters()]
    with restored(trainer.model):
        assert batch_size_finder._train(trainer, 4) == 4 * (3 * sum(weights) + len(weights))


def test_whole_batches_are_fetched_as_a_loader_would(tmp_path):
    class Whole(Samples):
        asked = []

        def __getitems__(self, indices):
            self.asked.append(indices)
            return [self[index] for index in indices]

    trainer = make_trainer(tmp_path, Regression())
    trainer.train_dataset = Whole(5)
    tune_batch_size(trainer, 4, 4)
    assert Whole.asked == [[0, 1, 2, 3], [4, 0, 1, 2]]


def test_other_errors_pass(tmp_path):
    class Broken(Regression):
        def forward(self, x, y, **context):
            raise RuntimeError("shapes do not match")

    model = Broken()
    before = values(model)
    with pytest.raises(RuntimeError, match="shapes"):
        tune_batch_size(make_trainer(tmp_path, model), 1, 4)
    assert_same(values(model), before)


def test_what_users_do_wrong(tmp_path):
    with pytest.raises(ValueError, match="not even a batch of one sample fits .out of memory with 1"):
        tune_batch_size(make_trainer(tmp_path, Restless(most=0)), 4, 8)
    trainer = make_trainer(tmp_path)
    with pytest.raises(ValueError, match="start 8 and maximum 4"):
        tune_batch_size(trainer, 8, 4)
    trainer.train_dataset = []
    with pytest.raises(ValueError, match="0 training samples"):
        tune_batch_size(trainer, 1, 4)


def test_memory_figures_are_plausible():
    import psutil

    assert available_bytes() <= psutil.virtual_memory().total
    status = Path("/proc/self/status").read_text()
    assert resident_bytes() == pytest.approx(1024 * int(status.split("VmRSS:")[1].split()[0]), rel=0.05)
