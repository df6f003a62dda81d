"""A run with poisoned samples against a hand-written loop that never saw their steps."""

import json
import math
import pickle

import pytest
import torch
from tiny_training import EpochSampler, Regression, Samples, make_trainer
from torch.utils.data import DataLoader, default_collate

from trainer.callbacks.log_files import write_files
from trainer.dataloading.samplers import record_batches, recorder_of
from trainer.optimization.lr_curves import LRSchedulerConfig
from trainer.optimization.lr_scheduler import Schedule
from trainer.optimization.nonfinite_guard import NonfiniteGuard, TrainingDiverged, describe, drop_update, skips_by_flag


class Poisoned(Samples):
    """Samples of which some have no target."""

    def __init__(self, count=22, bad=()):
        super().__init__(count)
        self.y[list(bad)] = math.nan


class Kink(Regression):
    """Samples below -90 have a finite loss with an infinite slope."""

    def forward(self, x, y, **context):
        out = super().forward(x.clamp(min=-1), y)
        if (x < -90).any():
            out["loss"] = out["loss"] + torch.sqrt(self.head.bias.sum() * 0)
        return out


def guarded(folder, bad, stop_after=100, **settings):
    """A trainer on `Poisoned` samples, and the lines its guard shows."""
    trainer = make_trainer(folder, stop_after_nonfinite=stop_after, **settings)
    trainer.train_dataset, shown = Poisoned(22, bad), []
    trainer.guard.show = shown.append
    return trainer, shown


def steps(dataset, epochs=2, size=4, accumulation=1, seed=42):
    """The micro-batches of each optimizer step, straight from the data."""
    for epoch in range(epochs):
        sampler = EpochSampler(len(dataset), seed)
        sampler.set_epoch(epoch)
        batches = list(DataLoader(dataset, batch_size=size, sampler=sampler, collate_fn=default_collate))
        for first in range(0, len(batches), accumulation):
            yield batches[first : first + accumulation]


def by_hand(optimizer_of, bad, dataset=None, accumulation=1, model=None, epochs=2):
    """Trains without the steps that hold a bad sample; returns the model, those steps, and the others' losses."""
    model, dataset = model or Regression(), dataset or Poisoned(22, bad)
    optimizer = optimizer_of(model.parameters())
    every = list(steps(dataset, epochs, accumulation=accumulation))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / len(every))
    left_out, losses = {}, {}
    for number, batches in enumerate(every, 1):
        poisoned = [batch["index"].tolist() for batch in batches if set(batch["index"].tolist()) & set(bad)]
        if poisoned:
            left_out[number] = poisoned
            optimizer._opt_called = True
        else:
            found = [model(**batch) for batch in batches]
            sum(each["loss"] / len(batches) for each in found).backward()
            losses[number] = [each["loss"].item() for each in found]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        schedule.step()
    return model, left_out, losses


def assert_same_weights(left, right, exact=True):
    for name, value in right.state_dict().items():
        assert torch.isfinite(value).all()
        if exact:
            assert torch.equal(left.state_dict()[name], value), name
        else:
            torch.testing.assert_close(left.state_dict()[name], value)


OPTIMIZERS = {
    "adamw_torch": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.0),
    "adamw_torch_fused": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.0, fused=True),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
}
SETTINGS = {
    "adamw_torch": {"optim": "adamw_torch"},
    "adamw_torch_fused": {"optim": "adamw_torch_fused"},
    "SGD": {"optimizer_name": "SGD", "optimizer_options": {"momentum": 0.9}},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_with_a_nan_leaves_no_trace(tmp_path, name):
    trainer, shown = guarded(tmp_path, bad=[7], num_train_epochs=2, **SETTINGS[name])
    trainer.train()
    model, left_out, _ = by_hand(OPTIMIZERS[name], [7])
    assert len(left_out) == 2
    assert_same_weights(trainer.model, model)
    assert len(shown) == 2
    for line, (step, batches) in zip(shown, left_out.items(), strict=True):
        ids = ", ".join(map(str, batches[0]))
        assert line.startswith(f"step {step} skipped: gradient norm nan, loss nan (error nan, size 0.")
        assert line.endswith(f"on samples {ids}; 1 in a row, {shown.index(line) + 1} in all")


class Labelled(Regression):
    """The mean over known targets: NaN without any, with a gradient of 0."""

    def forward(self, x, y, **context):
        known = y.isfinite()
        prediction = self.head(torch.tanh(self.linear(self.norm(x))))[:, 0]
        return {"loss": (prediction - y)[known].square().mean()}


@pytest.mark.slow
@pytest.mark.parametrize("is_on_device", [False, True])
def test_a_loss_without_a_gradient_is_skipped_too(tmp_path, monkeypatch, is_on_device):
    monkeypatch.setattr(NonfiniteGuard, "should_not_wait", staticmethod(lambda norm: is_on_device))
    second = list(steps(Samples(22), epochs=1))[1][0]["index"].tolist()
    settings = {"num_train_epochs": 1, "logging_steps": 1, "optim": "adamw_torch_fused", "model": Labelled()}
    trainer, shown = guarded(tmp_path, bad=second, **settings)
    trainer.train()
    model, left_out, losses = by_hand(OPTIMIZERS["adamw_torch_fused"], second, model=Labelled(), epochs=1)
    assert list(left_out) == [2] and len(shown) == 1
    assert_same_weights(trainer.model, model)
    logged = {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}
    assert math.isnan(logged.pop(2)) and logged == {step: value for step, (value,) in losses.items()}


class Normalized(Regression):
    """Its running statistics have seen every input of a forward."""

    def __init__(self):
        super().__init__()
        self.batch_norm = torch.nn.BatchNorm1d(4)

    def forward(self, x, y, **context):
        return super().forward(self.batch_norm(x), y)


@pytest.mark.slow
@pytest.mark.parametrize("is_on_device", [False, True])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_batch_statistics_are_those_of_the_applied_steps(tmp_path, monkeypatch, is_on_device, accumulation):
    data = Samples(22)
    data.x[7] = math.nan
    monkeypatch.setattr(NonfiniteGuard, "should_not_wait", staticmethod(lambda norm: is_on_device))
    settings = {"num_train_epochs": 2, "gradient_accumulation_steps": accumulation, "optim": "adamw_torch_fused"}
    trainer = make_trainer(tmp_path, Normalized(), data=data, **settings)
    trainer.train()
    model, left_out, _ = by_hand(OPTIMIZERS["adamw_torch_fused"], [7], data, accumulation, Normalized())
    assert len(left_out) == 2
    assert_same_weights(trainer.model, model, exact=False)


@pytest.mark.slow
def test_a_bad_first_step(tmp_path):
    """Before any optimizer state exists."""
    first = next(steps(Poisoned(22)))[0]["index"].tolist()
    trainer, shown = guarded(tmp_path, bad=first[:1], num_train_epochs=1, optim="adamw_torch_fused")
    trainer.train()
    model, left_out, _ = by_hand(OPTIMIZERS["adamw_torch_fused"], first[:1], epochs=1)
    assert list(left_out) == [1]
    assert_same_weights(trainer.model, model)


@pytest.mark.slow
def test_a_bad_micro_batch_spoils_its_own_step_only(tmp_path):
    trainer, shown = guarded(tmp_path, bad=[7], num_train_epochs=2, gradient_accumulation_steps=2, optim="adamw_torch")
    trainer.train()
    model, left_out, _ = by_hand(OPTIMIZERS["adamw_torch"], [7], accumulation=2)
    assert_same_weights(trainer.model, model, exact=False)
    assert len(shown) == 2
    for line, batches in zip(shown, left_out.values(), strict=True):
        assert line.count("on samples") == 1 and f"on samples {', '.join(map(str, batches[0]))};" in line


@pytest.mark.slow
def test_the_logged_losses_are_means_over_the_applied_steps(tmp_path):
    settings = {"num_train_epochs": 2, "logging_steps": 3, "gradient_accumulation_steps": 2, "learning_rate": 0.0}
    trainer, shown = guarded(tmp_path, bad=[7], optim="adamw_torch", **settings)
    trainer.train()
    frozen, left_out, losses = by_hand(lambda p: torch.optim.SGD(p, lr=0.0), [7], accumulation=2)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "loss" in line]
    assert [line["step"] for line in lines] == [3, 6]
    every = list(steps(Poisoned(22), accumulation=2))
    for line, numbers in zip(lines, ((1, 2, 3), (4, 5, 6)), strict=True):
        applied = [number for number in numbers if number in losses]
        assert line.get("skipped_steps", 0) == 3 - len(applied) == 1
        wanted = sum(sum(losses[number]) / 2 for number in applied) / len(applied)
        assert line["loss"] == pytest.approx(wanted, rel=1e-5)
        errors = [frozen(**batch)["losses"]["error"].item() for number in applied for batch in every[number - 1]]
        assert line["loss_error"] == pytest.approx(sum(errors) / len(errors), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("is_on_device", [False, True])
def test_a_plateau_follows_the_mean_over_the_applied_steps(tmp_path, monkeypatch, is_on_device):
    monkeypatch.setattr(NonfiniteGuard, "should_not_wait", staticmethod(lambda norm: is_on_device))
    plateau = LRSchedulerConfig("ReduceLROnPlateau", interval="epoch", monitor="loss", learning_rate=0.0)
    settings = {"num_train_epochs": 2, "learning_rate": 0.0, "optim": "adamw_torch_fused"}
    trainer, _ = guarded(tmp_path, bad=[7], schedule=plateau, **settings)
    seen = []
    monkeypatch.setattr(Schedule, "observe", lambda self, value: seen.append(value))
    trainer.train()
    _, left_out, losses = by_hand(lambda p: torch.optim.SGD(p, lr=0.0), [7])
    epochs = [[losses[step][0] for step in numbers if step in losses] for numbers in (range(1, 7), range(7, 13))]
    assert [len(epoch) for epoch in epochs] == [5, 5] and len(left_out) == 2
    assert seen == pytest.approx([sum(epoch) / 5 for epoch in epochs])


@pytest.mark.slow
def test_without_bad_samples_nothing_changes(tmp_path):
    trainer, shown = guarded(tmp_path, bad=[], num_train_epochs=2, logging_steps=1, optim="adamw_torch")
    trainer.train()
    model, _, losses = by_hand(OPTIMIZERS["adamw_torch"], [])
    assert_same_weights(trainer.model, model)
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert [log["loss"] for log in logs] == [losses[step][0] for step in range(1, 13)]
    assert shown == [] and not any("skipped_steps" in log for log in logs)


@pytest.mark.slow
def test_enough_bad_steps_in_a_row_end_the_run(tmp_path):
    """The third, fourth and fifth step are bad; the weights are those of the second."""
    every = list(steps(Poisoned(22)))
    bad = [every[number][0]["index"][0].item() for number in (2, 3, 4)]
    settings = {"save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch", "num_train_epochs": 2}
    trainer, shown = guarded(tmp_path, bad=bad, stop_after=3, **settings)
    with pytest.raises(TrainingDiverged, match="3 steps in a row were not finite") as raised:
        trainer.train()
    text = str(raised.value)
    assert "step 5 skipped" in text and "those of step 2" in text and f"{bad[2]}" in text and "\n" not in text
    assert str(tmp_path / "checkpoint-4") in text
    model = Regression()
    optimizer = OPTIMIZERS["adamw_torch"](model.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 12)
    for (batch,) in every[:2]:
        model(**batch)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    assert_same_weights(trainer.model, model)


@pytest.mark.slow
def test_a_good_step_starts_the_count_anew(tmp_path):
    trainer, shown = guarded(tmp_path, bad=[7], stop_after=2, num_train_epochs=4)
    trainer.train()
    assert len(shown) == 4 and all("1 in a row" in line for line in shown)


@pytest.mark.slow
def test_a_gradient_alone_may_be_infinite(tmp_path):
    trainer, shown = guarded(tmp_path, bad=[], model=Kink(), num_train_epochs=2, optim="adamw_torch")
    trainer.train_dataset.x[7] = -100.0
    trainer.train()
    dataset = Poisoned(22)
    dataset.x[7] = -100.0
    model, left_out, _ = by_hand(OPTIMIZERS["adamw_torch"], [7], dataset=dataset, model=Kink())
    assert_same_weights(trainer.model, model)
    assert len(left_out) == len(shown) == 2
    assert all("gradient norm nan, loss 0." in line or "gradient norm nan, loss 1." in line for line in shown)


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_decision_left_on_the_device(tmp_path, monkeypatch, accumulation):
    """As on CUDA: the kernels read the flag, the host looks a step later. Same weights, lines and log."""
    settings = {"num_train_epochs": 2, "gradient_accumulation_steps": accumulation, "logging_steps": 3}
    by_host, lines = guarded(tmp_path / "host", bad=[7], optim="adamw_torch_fused", **settings)
    by_host.train()
    monkeypatch.setattr(NonfiniteGuard, "should_not_wait", staticmethod(lambda norm: True))
    trainer, shown = guarded(tmp_path / "device", bad=[7], optim="adamw_torch_fused", **settings)
    trainer.train()
    assert_same_weights(trainer.model, by_host.model)
    assert shown == lines and len(shown) == 2
    assert isinstance(trainer.skipped_update, torch.Tensor) and not hasattr(trainer.optimizer.optimizer, "found_inf")

    def log(name):
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        kept = ("step", "loss", "loss_error", "skipped_steps", "grad_norm")
        return [{key: line.get(key) for key in kept} for line in lines if "loss" in line]

    assert log("device") == log("host")


def test_the_host_looks_one_step_later_at_a_flag_on_the_device(monkeypatch):
    monkeypatch.setattr(NonfiniteGuard, "should_not_wait", staticmethod(lambda norm: True))
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    shown = []
    guard = NonfiniteGuard(2, show=shown.append)
    total = torch.tensor(5.0)

    def one_step(number, loss):
        guard.begin([number], total)
        value = guard.protect((weight * loss).sum())
        total.add_(value.detach())
        value.backward()
        flag = guard.before_update(number, optimizer, weight.grad.norm())
        optimizer.step()
        optimizer.zero_grad()
        return flag

    assert not one_step(1, 1.0) and shown == [] and total == 8.0
    after = weight.detach().clone()
    assert one_step(2, math.inf) and shown == [] and total == 8.0
    assert torch.equal(weight.detach(), after) and optimizer.state[weight]["step"] == 1
    one_step(3, math.nan)
    assert len(shown) == 1 and "step 2" in shown[0] and "samples 2" in shown[0]
    with pytest.raises(TrainingDiverged, match="those of step 1"):
        guard.settle()
    assert torch.equal(weight.detach(), after)


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "SGD", "Adagrad"])
def test_fused_kernels_read_the_flag(kind):
    """The premise: with `found_inf` set, weights and state stay, and the next step is as if nothing had been."""
    options = {"momentum": 0.9} if kind == "SGD" else {}
    weights = [torch.nn.Parameter(torch.ones(5)) for _ in range(2)]
    optimizers = [getattr(torch.optim, kind)([each], lr=0.1, fused=True, **options) for each in weights]
    for gradient, flag in ((1.0, 0.0), (math.nan, 1.0), (2.0, 0.0)):
        for weight, optimizer in zip(weights, optimizers, strict=True):
            if flag and optimizer is optimizers[1]:
                continue
            weight.grad = torch.full((5,), gradient)
            optimizer.found_inf = torch.tensor(flag)
            optimizer.step()
    assert torch.equal(*weights)
    for name, value in optimizers[0].state[weights[0]].items():
        assert torch.equal(value, optimizers[1].state[weights[1]][name]), name


def test_which_optimizers_may_be_left_to_the_flag():
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    assert skips_by_flag(torch.optim.AdamW([weight], fused=True))
    assert not skips_by_flag(torch.optim.AdamW([weight]))
    assert not skips_by_flag(torch.optim.RMSprop([weight]))
    assert skips_by_flag(torch.optim.SGD([weight], lr=0.1, fused=True))
    momentum = torch.optim.SGD([weight], lr=0.1, momentum=0.9, fused=True)
    assert not skips_by_flag(momentum)  # its momentum would begin as uninitialized memory
    momentum.step()
    assert skips_by_flag(momentum)


def every_optimizer(weight):
    from transformers.optimization import Adafactor

    yield torch.optim.AdamW([weight], lr=0.1, fused=True)
    yield torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    yield torch.optim.Muon([weight], lr=0.1)
    yield torch.optim.Adafactor([weight], lr=0.1)
    yield Adafactor([weight], relative_step=True, warmup_init=True, lr=None)
    package = pytest.importorskip("pytorch_optimizer")
    for name in ("lion", "lamb", "adopt", "prodigy", "came", "schedulefreeadamw"):
        yield package.load_optimizer(name)([weight])


@pytest.mark.slow
def test_a_dropped_step_changes_neither_weights_nor_state():
    """Also where the optimizer counts its steps without looking for gradients; the step after it is a real one."""
    weight = torch.nn.Parameter(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))
    for optimizer in every_optimizer(weight):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        if optimizer.param_groups[0]["lr"] is not None:
            torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)  # wraps `step`
        before, state = weight.detach().clone(), pickle.dumps(optimizer.state_dict())
        weight.grad = torch.full_like(weight, math.nan)
        drop_update(optimizer)
        assert weight.grad is None
        optimizer.step()
        assert torch.equal(weight.detach(), before), type(optimizer)
        assert pickle.dumps(optimizer.state_dict()) == state, type(optimizer)
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        assert not torch.equal(weight.detach(), before) and torch.isfinite(weight).all(), type(optimizer)
        weight.grad = None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_finite_loss_passes_bit_for_bit(dtype):
    guard = NonfiniteGuard(1)
    x = torch.tensor(1.2345, dtype=dtype, requires_grad=True)
    y = guard.protect(x * 3)
    y.backward()
    assert y.dtype == dtype and torch.equal(y.detach(), (x * 3).detach()) and x.grad == 3
    for bad in (math.nan, math.inf, -math.inf):
        x.grad = None
        guard.protect(x + bad).backward()
        assert x.grad.isnan()


def test_float16_overflows_are_the_scalers_business():
    """Only a loss that is not finite counts; the gradients stay for the scaler to see."""

    class Wrapped:
        def __init__(self, optimizer):
            self.optimizer, self.scaler, self.param_groups = optimizer, object(), optimizer.param_groups

    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = Wrapped(torch.optim.SGD([weight], lr=0.1))
    guard = NonfiniteGuard(2, show=lambda line: None)
    for loss, skipped in ((1.0, False), (math.nan, True)):
        weight.grad = torch.full((2,), math.inf)
        guard.begin(None)
        guard.protect(torch.tensor(loss))
        assert guard.before_update(1, optimizer, torch.tensor(math.inf)) is skipped
        assert weight.grad is not None and guard.skipped == int(skipped)


def test_the_count_survives_a_resume(tmp_path):
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    guard = NonfiniteGuard(2, show=lambda line: None)
    guard.before_update(1, optimizer, math.nan)
    write_files(tmp_path, guard.facts())
    resumed = NonfiniteGuard(2, show=lambda line: None)
    resumed.load(tmp_path)
    with pytest.raises(TrainingDiverged):
        resumed.before_update(2, optimizer, math.inf)
    resumed.load(tmp_path / "absent")
    assert resumed.in_a_row == 0


def test_a_long_list_of_samples_is_cut():
    batch = {"loss": math.nan, "terms": {}, "samples": list(map(str, range(100)))}
    text = describe([batch] * 6)
    assert "63, …" in text and "64" not in text and text.endswith("and 2 more batches")


class Whole(Samples):
    """A data set that makes whole batches."""

    def __getitems__(self, indices):
        return {"x": self.x[indices], "y": self.y[indices]}


def same(batch):
    return batch


@pytest.mark.slow
@pytest.mark.parametrize(("dataset", "collate"), [(Samples(6), default_collate), (Whole(6), same)])
@pytest.mark.parametrize("workers", [0, 1])
def test_the_samples_of_a_batch_are_known(dataset, collate, workers):
    order = [5, 0, 3, 1, 2, 4]
    loader = record_batches(DataLoader(dataset, batch_size=4, sampler=order, collate_fn=collate, num_workers=workers))
    recorder, own = recorder_of(loader), []
    assert loader.dataset is dataset and len(loader) == 2
    list(loader)
    assert recorder.take() is None  # a pass that was not announced
    recorder.record_next_pass()
    for batch in loader:
        own.append(recorder.take())
        list(recorder)  # another pass meanwhile
        assert torch.equal(batch["x"], dataset.x[own[-1]])
    assert own == [[5, 0, 3, 1], [2, 4]] and recorder.take() is None
    recorder.record_next_pass(skipped=1)
    assert len(list(loader)) == 2 and [recorder.take(), recorder.take()] == [[2, 4], None]


def _train_one_of_two(rank, folder):
    """One process's sample is bad in step 2: both skip it."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    shown = []
    guard = NonfiniteGuard(3, show=shown.append)
    weights = []
    for step in (1, 2, 3):
        guard.begin([10 * step + rank])
        bad = step == 2 and rank == 1
        guard.protect(model(torch.ones(1, 2)).sum() * (math.nan if bad else 1.0)).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        guard.before_update(step, optimizer, norm)
        optimizer.step()
        optimizer.zero_grad()
        weights.append(model.module.weight.detach().clone())
    torch.save((weights, shown, guard.skipped), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_all_processes_skip_together(tmp_path):
    context = torch.multiprocessing.get_context("fork")
    processes = [context.Process(target=_train_one_of_two, args=(rank, str(tmp_path))) for rank in (0, 1)]
    for process in processes:
        process.start()
    for each in processes:
        each.join(60)
    (main, shown, count), (other, silent, other_count) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(left, right) for left, right in zip(main, other, strict=True))
    assert torch.equal(main[0], main[1]) and not torch.equal(main[1], main[2])
    assert count == other_count == 1 and silent == []
    assert len(shown) == 1 and "loss nan on samples 21;" in shown[0]


@pytest.mark.slow
def test_a_data_set_that_knows_says_where_its_samples_lie(tmp_path):
    class Located(Poisoned):
        def where(self, index):
            return f"page {index // 10} line {index % 10}"

    trainer = make_trainer(tmp_path, data=Located(22, [17]), num_train_epochs=1)
    shown = []
    trainer.guard.show = shown.append
    trainer.train()
    assert len(shown) == 1 and "page 1 line 7" in shown[0]


@pytest.mark.slow
def test_bad_steps_before_a_resume_count(tmp_path):
    """Two before and two after it are four in a row."""
    settings = {"stop_after": 4, "save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant"}
    trainer, _ = guarded(tmp_path, bad=range(22), max_steps=2, **settings)
    trainer.train()
    trainer, shown = guarded(tmp_path, bad=range(22), max_steps=12, **settings)
    with pytest.raises(TrainingDiverged, match="4 steps in a row .* step 4 skipped.* those of step 0"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [line[line.index(";") :] for line in shown] == ["; 3 in a row, 3 in all", "; 4 in a row, 4 in all"]
