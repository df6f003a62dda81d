"""Parameter groups and optimizers by name."""

from types import SimpleNamespace

import pytest
import torch
from tiny_training import Regression, make_trainer
from torch import nn

from trainer.optimizers import parameter_groups, torch_optimizer, undecayed_names


def spec(pattern, lr=None, lr_factor=None, weight_decay=None):
    return SimpleNamespace(pattern=pattern, lr=lr, lr_factor=lr_factor, weight_decay=weight_decay)


def named(model, group):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)] for parameter in group["params"]}


def test_norms_are_known_by_type_and_biases_by_name():
    class Oddly(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.BatchNorm2d(3)  # nothing in its name says normalization
            self.ln_1 = nn.RMSNorm(3)
            self.normal = nn.Linear(3, 3)  # nor does this one's name make it one
            self.attention = nn.MultiheadAttention(4, 2)

    assert undecayed_names(Oddly()) == {
        "scale.weight",
        "scale.bias",
        "ln_1.weight",
        "normal.bias",
        "attention.in_proj_bias",
        "attention.out_proj.bias",
    }


def test_every_trainable_parameter_is_in_exactly_one_group():
    model = Regression()
    model.norm.weight.requires_grad_(False)
    groups = parameter_groups(
        model, 1e-3, 0.1, [spec("^head", lr=5e-4), spec("linear", lr_factor=0.1, weight_decay=0.3)]
    )
    together = [name for group in groups for name in named(model, group)]
    assert sorted(together) == sorted(name for name, p in model.named_parameters() if p.requires_grad)
    settings = {frozenset(named(model, group)): (group["lr"], group["weight_decay"]) for group in groups}
    assert settings == {
        frozenset({"norm.bias"}): (1e-3, 0.0),
        frozenset({"linear.weight"}): (1e-4, 0.3),
        frozenset({"linear.bias"}): (1e-4, 0.0),
        frozenset({"head.weight"}): (5e-4, 0.1),
        frozenset({"head.bias"}): (5e-4, 0.0),
    }


def test_patterns_may_be_parts_and_must_match():
    model, parts = Regression(), {"top": r"^head\."}
    assert parameter_groups(model, 1.0, 0.0, [spec("top", lr=2.0)], parts)[-1]["lr"] == 2.0
    with pytest.raises(
        ValueError,
        match=r"param_groups\[0\].pattern `backbone` matches no trainable parameter; parts of this model: top",
    ):
        parameter_groups(model, 1.0, 0.0, [spec("backbone", lr=2.0)], parts)
    with pytest.raises(ValueError, match="is not a regular expression"):
        parameter_groups(model, 1.0, 0.0, [spec("(", lr=2.0)], parts)


def test_torch_optimizers_by_class_name():
    assert torch_optimizer("SGD", {"momentum": 0.9}) is torch.optim.SGD
    with pytest.raises(ValueError, match="did you mean `AdamW`"):
        torch_optimizer("Adamw", {})
    with pytest.raises(ValueError, match="takes no `momentun`; it takes lr, momentum"):
        torch_optimizer("SGD", {"momentun": 0.9})
    with pytest.raises(ValueError, match="neither a TrainingArguments name nor"):
        torch_optimizer("lr_scheduler", {})


def test_the_trainer_uses_the_named_optimizer_with_its_options(tmp_path):
    trainer = make_trainer(tmp_path, optimizer_name="SGD", optimizer_options={"momentum": 0.9, "nesterov": True})
    optimizer = trainer.create_optimizer()
    assert type(optimizer) is torch.optim.SGD
    assert all(g["momentum"] == 0.9 and g["nesterov"] and g["lr"] == 0.05 for g in optimizer.param_groups)


def test_adam_flags_reach_torch_classes_and_trainer_names_alike(tmp_path):
    for name in ("AdamW", "adamw_torch"):
        trainer = make_trainer(tmp_path, optimizer_name=name, adam_beta1=0.7, adam_beta2=0.8, adam_epsilon=1e-5)
        if name == "adamw_torch":
            trainer.args.optim = type(trainer.args.optim)(name)
        group = trainer.create_optimizer().param_groups[0]
        assert tuple(group["betas"]) == (0.7, 0.8) and group["eps"] == 1e-5


def test_groups_reach_the_schedule(tmp_path):
    """A group's own rate follows the same curve, scaled."""
    trainer = make_trainer(tmp_path, max_steps=4, param_groups=[spec("head", lr=0.5)], learning_rate=0.05)
    trainer.train()
    rates = {round(group["initial_lr"], 6) for group in trainer.optimizer.param_groups}
    assert rates == {0.05, 0.5}


@pytest.mark.parametrize("kind", ["linear", "cosine", "polynomial", "inverse_sqrt", "constant", "reduce_lr_on_plateau"])
def test_every_schedule_passes_the_trial_and_trains(tmp_path, kind):
    evaluation = {"eval_strategy": "steps", "eval_steps": 2}
    make_trainer(tmp_path, max_steps=4, lr_scheduler_type=kind, **evaluation).train()


def test_the_trial_names_what_cannot_be_built(tmp_path):
    with pytest.raises(ValueError, match="schedule `cosine` cannot be built: .*bogus"):
        make_trainer(tmp_path / "out", lr_scheduler_type="cosine", lr_scheduler_kwargs={"bogus": 1})
    with pytest.raises(ValueError, match="optimizer `adamw_torch` .*cannot be built: .*bogus"):
        make_trainer(
            tmp_path / "out", optimizer_name="adamw_torch", optimizer_options={"bogus": 1}, optim="adamw_torch"
        )
    with pytest.raises(ValueError, match="`LBFGS` evaluates the loss several times"):
        make_trainer(tmp_path / "out", optimizer_name="LBFGS")
    assert not (tmp_path / "out").exists()
