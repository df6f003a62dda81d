"""Averaged weights against the formula, and runs that swap, save and resume against runs that do not."""

import json
from types import SimpleNamespace

import pytest
import torch
from tiny_training import Regression, make_trainer
from torch import nn

from trainer.optimization.ema import AveragedWeights


class Tied(nn.Module):
    """A frozen layer, two that share a weight, and batch statistics."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.norm = nn.BatchNorm1d(3)
        self.first, self.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight
        self.to(dtype)


def change(model, seed):
    """As if an optimizer had stepped."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype))


def values(model):
    return {name: each.detach().clone() for name, each in model.state_dict().items()}


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("warmup", [True, False])
def test_the_formula(dtype, warmup):
    model = Tied(dtype)
    ema = AveragedWeights(model, decay=0.8, warmup=warmup, update_every=2)
    wanted = {name: each.double().clone() for name, each in model.named_parameters() if each.requires_grad}
    assert set(ema.names) == set(wanted) == {"norm.weight", "norm.bias", "first.weight"}  # tied once, frozen not
    updates = 0
    for step in range(1, 9):
        change(model, step)
        ema.update(step)
        if step % 2 == 0:
            keep = min(0.8, (1 + updates) / (10 + updates)) if warmup else 0.8
            for name, each in model.named_parameters():
                if name in wanted:
                    wanted[name] = keep * wanted[name] + (1 - keep) * each.detach().double()
            updates += 1
    tensors, facts = ema.state()
    assert facts == {"decay": 0.8, "warmup": warmup, "update_every": 2, "updates": 4}
    for name, value in wanted.items():
        shadow = tensors[f"shadow.{name}"]
        assert shadow.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(shadow.double(), value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swapped_shows_the_average_and_gives_back_the_very_same_weights(dtype):
    model = Tied(dtype)
    ema = AveragedWeights(model, decay=0.5, warmup=False, update_every=1)
    change(model, 1)
    ema.update(1)
    trained, pointers = values(model), [parameter.data_ptr() for parameter in model.parameters()]
    with ema.swapped():
        inside = values(model)
        with ema.swapped():
            assert_same(values(model), inside)
        assert_same(values(model), inside)  # the inner one gave nothing back
        assert torch.equal(ema.state()[0]["trained.first.weight"], trained["first.weight"])
    assert torch.equal(inside["first.weight"], ema.state()[0]["shadow.first.weight"].to(dtype))
    assert not torch.equal(inside["first.weight"], trained["first.weight"])
    assert torch.equal(inside["frozen.weight"], trained["frozen.weight"])
    assert_same(values(model), trained)
    with pytest.raises(RuntimeError, match="inside"), ema.swapped():
        raise RuntimeError("inside")
    assert_same(values(model), trained)
    assert [each.data_ptr() for each in model.parameters()] == pointers


def test_small_changes_of_bfloat16_weights_are_not_lost():
    """A bfloat16 shadow would stay at 1: 0.999 * 1 + 0.001 * 2 rounds to 1."""
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    nn.init.ones_(model.weight)
    ema = AveragedWeights(model, decay=0.999, warmup=False, update_every=1)
    nn.init.constant_(model.weight, 2.0)
    for step in range(1, 101):
        ema.update(step)
    assert ema.shadow[0].item() == pytest.approx(2 - 0.999**100, rel=1e-5)


def test_buffers_stay_the_live_ones():
    model = Tied()
    ema = AveragedWeights(model, decay=0.5, warmup=False, update_every=1)
    model.norm(torch.randn(8, 3))
    live = model.norm.running_mean.clone()
    with ema.swapped():
        assert torch.equal(model.norm.running_mean, live) and live.abs().sum() > 0


def test_saved_and_loaded_bit_for_bit(tmp_path):
    model = Tied(torch.bfloat16)
    ema = AveragedWeights(model, decay=0.9, warmup=True, update_every=1)
    for step in (1, 2, 3):
        change(model, step)
        ema.update(step)
    trained = values(model)
    with ema.swapped():  # as a checkpoint is saved
        AveragedWeights.write(tmp_path, *ema.state())
        averaged = values(model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ema.json", "ema.safetensors"]

    other = Tied(torch.bfloat16)
    other.load_state_dict(averaged)
    resumed = AveragedWeights(other, decay=0.9, warmup=True, update_every=1)
    resumed.load(tmp_path)
    assert_same(values(other), trained)
    assert resumed.updates == 3
    for each, twin in ((model, ema), (other, resumed)):
        change(each, 4)
        twin.update(4)
    assert_same(ema.state()[0], resumed.state()[0])


def test_names_are_those_of_the_model_itself(tmp_path):
    """Through torch.compile's wrapper and DDP's, so that a checkpoint is the same whichever trained it."""

    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    model = Tied()
    plain = AveragedWeights(model, 0.9, True, 1)
    compiled = torch.compile(model)
    inner = Tied()
    inner.first = torch.compile(inner.first)
    assert AveragedWeights(compiled, 0.9, True, 1).names == plain.names
    assert AveragedWeights(Wrapper(compiled), 0.9, True, 1).names == plain.names
    assert set(AveragedWeights(inner, 0.9, True, 1).names) == set(plain.names)
    AveragedWeights.write(tmp_path, *plain.state())
    AveragedWeights(Wrapper(compiled), 0.9, True, 1).load(tmp_path)


def test_only_adapters_are_averaged():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(Regression(), peft.LoraConfig(r=2, target_modules=["linear"], modules_to_save=["head"]))
    ema = AveragedWeights(model, decay=0.5, warmup=False, update_every=1)
    assert sorted(name.split(".")[-2] for name in ema.names) == ["default", "default", "default", "default"]
    assert {name.split(".")[2] for name in ema.names} == {"linear", "head"}
    change(model, 1)
    ema.update(1)
    trained = values(model)
    with ema.swapped():
        changed = {name for name, value in values(model).items() if not torch.equal(value, trained[name])}
    assert changed == set(ema.names)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda model: model.frozen.requires_grad_(True), "`frozen.weight` is not trained"),
        (lambda model: model.norm.requires_grad_(False), "`norm.bias` .* in this run not trained"),
        (lambda model: model.to(torch.bfloat16), "is \\(3,\\) torch.float32, .* \\(3,\\) torch.bfloat16"),
        (lambda model: setattr(model, "norm", nn.BatchNorm1d(5)), "is \\(3,\\) torch.float32, .* \\(5,\\)"),
    ],
)
def test_a_checkpoint_of_other_weights_is_refused_and_nothing_changes(tmp_path, break_it, message):
    AveragedWeights.write(tmp_path, *AveragedWeights(Tied(), 0.9, True, 1).state())
    model = Tied()
    break_it(model)
    ema = AveragedWeights(model, 0.9, True, 1)
    change(model, 1)
    before = values(model)
    with pytest.raises(ValueError, match=message):
        ema.load(tmp_path)
    assert_same(values(model), before)


def test_what_users_do_wrong(tmp_path):
    with pytest.raises(ValueError, match="frozen"):
        AveragedWeights(Tied().requires_grad_(False), 0.9, True, 1)
    with pytest.raises(ValueError, match="without EMA"):
        AveragedWeights(Tied(), 0.9, True, 1).load(tmp_path)


AVERAGED = SimpleNamespace(decay=0.9, warmup=True, update_every=2)


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    """Weights, averages and evaluations, with an evaluation and a checkpoint between updates of the shadow."""
    settings = {"num_train_epochs": 3, "save_strategy": "steps", "save_steps": 5, "eval_strategy": "steps"}
    settings |= {"eval_steps": 5, "logging_steps": 1, "ema": AVERAGED}
    whole = make_trainer(tmp_path / "whole", Regression(dropout=0.3), **settings)
    whole.train()
    resumed = make_trainer(tmp_path / "parts", Regression(seed=9, dropout=0.3), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    assert_same(values(resumed.model), values(whole.model))
    assert_same(resumed.ema.state()[0], whole.ema.state()[0])
    assert resumed.evaluate() | TIMES == whole.evaluate() | TIMES

    from safetensors.torch import load_file

    saved = load_file(tmp_path / "parts" / "checkpoint-18" / "model.safetensors")
    for name, each in zip(resumed.ema.names, resumed.ema.shadow, strict=True):
        assert torch.equal(saved[name], each)  # what is exported is the average
    assert json.loads((tmp_path / "parts" / "checkpoint-18" / "ema.json").read_text())["updates"] == 9


TIMES = dict.fromkeys(("eval_runtime", "eval_samples_per_second", "eval_steps_per_second"), 0)


@pytest.mark.slow
def test_training_is_not_disturbed(tmp_path):
    """The same weights as a run without EMA."""
    settings = {"max_steps": 6, "eval_strategy": "steps", "eval_steps": 2}
    plain = make_trainer(tmp_path / "plain", **settings)
    plain.train()
    averaged = make_trainer(tmp_path / "averaged", ema=AVERAGED, **settings)
    averaged.train()
    assert_same(values(averaged.model), values(plain.model))


def test_the_shadow_follows_the_model_to_its_device():
    """Meta stands for a GPU here: the weights are moved after the shadow was made."""
    model = nn.Linear(2, 2)
    ema = AveragedWeights(model, 0.9, True, 1)
    ema.parameters = [SimpleNamespace(device=torch.device("meta"), dtype=torch.float32) for _ in ema.parameters]
    ema._same_kind()
    assert all(each.device.type == "meta" for each in ema.shadow)
