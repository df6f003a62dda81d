"""What a resumed run is given otherwise reaches its optimizer: against plain loops of torch."""

from dataclasses import dataclass

import pytest
import torch
from tiny_training import Regression, Samples, make_trainer

from trainer.optimization.lr_curves import LRSchedulerConfig
from trainer.optimization.optimizers import OptimizerPlan, changed_options

STEPS, CHANGED_AT = 6, 3
SAME = {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "weight_decay": 0.1, "learning_rate": 0.05}
RUN = {"shuffle": False, "count": 8, "max_steps": STEPS, "save_strategy": "steps", "save_steps": CHANGED_AT}
RUN |= {"max_grad_norm": 0.0, "lr_scheduler_type": "constant", "optim": "adamw_torch"}


def resumed(tmp_path, before, after, plan=None, **settings):
    """Weights after STEPS steps, of which the last were trained with other arguments."""
    make_trainer(tmp_path, **{**RUN, **SAME, **settings, **before}).train()
    trainer = make_trainer(tmp_path, **{**RUN, **SAME, **settings, **after})
    earlier = {**SAME, **before}
    arguments = {name: earlier[name] for name in SAME} | {"optim_args": None}
    options = before.get("optimizer_options", settings.get("optimizer_options", {}))
    specs = before.get("param_groups", settings.get("param_groups", ()))
    trainer.settings.earlier_optimizer = plan or OptimizerPlan(trainer.optimizer_name, options, specs, arguments)
    checkpoint = tmp_path / f"checkpoint-{CHANGED_AT}"
    trainer.check_resumable(checkpoint)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    return trainer


def by_hand(make_optimizer, change):
    """The same with torch alone: `change(groups)` is called between two steps. The first group is decayed."""
    model, data = Regression(), Samples(8)
    decayed = [model.linear.weight, model.head.weight]
    others = [parameter for parameter in model.parameters() if all(parameter is not one for one in decayed)]
    optimizer = make_optimizer([{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}])
    for step in range(STEPS):
        if step == CHANGED_AT:
            change(optimizer.param_groups)
        half = slice(0, 4) if step % 2 == 0 else slice(4, 8)
        model(data.x[half], data.y[half])["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def assert_equal(trainer, model):
    mine, theirs = trainer.model.state_dict(), model.state_dict()
    assert all(torch.allclose(mine[name], theirs[name], atol=1e-7, rtol=1e-6) for name in theirs)


def adamw(groups):
    return torch.optim.AdamW(groups, lr=0.05, betas=(0.9, 0.999), eps=1e-8)


def sets(**options):
    def change(groups):
        for group in groups:
            group.update(options)

    return change


@pytest.mark.slow
@pytest.mark.parametrize(
    ("after", "change"),
    [
        ({"adam_beta1": 0.5, "adam_beta2": 0.9}, sets(betas=(0.5, 0.9))),
        ({"adam_epsilon": 1e-2}, sets(eps=1e-2)),
        ({"learning_rate": 0.2}, sets(lr=0.2)),
        ({"weight_decay": 0.9}, lambda groups: groups[0].update(weight_decay=0.9)),  # biases and norms stay undecayed
        ({}, sets()),
    ],
)
def test_adams_numbers(tmp_path, after, change):
    assert_equal(resumed(tmp_path, {}, after), by_hand(adamw, change))


@pytest.mark.slow
def test_the_test_would_notice(tmp_path):
    """Without what is compared here, the loaded state brings the old numbers back."""
    with pytest.raises(AssertionError):
        assert_equal(resumed(tmp_path, {}, {}), by_hand(adamw, sets(betas=(0.5, 0.9))))


@pytest.mark.slow
def test_an_optimizers_own_options(tmp_path):
    settings = {"optimizer_name": "SGD"}
    before, after = {"optimizer_options": {"momentum": 0.9}}, {"optimizer_options": {"momentum": 0.5, "dampening": 0.1}}
    trainer = resumed(tmp_path, before, after, **settings)
    sgd = by_hand(lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9), sets(momentum=0.5, dampening=0.1))
    assert_equal(trainer, sgd)


@dataclass
class Spec:
    pattern: str
    lr: float | None = None
    lr_factor: float | None = None
    weight_decay: float | None = None


@pytest.mark.slow
def test_the_rate_of_one_group(tmp_path):
    """The others stay where an earlier resume had put them."""
    before, after = {"param_groups": [Spec("head", lr=0.1)]}, {"param_groups": [Spec("head", lr=0.3)]}
    make_trainer(tmp_path / "a", **{**RUN, **SAME, **before}).train()
    moved = make_trainer(tmp_path / "a", **{**RUN, **SAME, **before, "resume_lr": 0.01})
    moved.train(resume_from_checkpoint=str(tmp_path / "a/checkpoint-3"))
    trainer = make_trainer(tmp_path / "a", **{**RUN, **SAME, **after, "max_steps": 8})
    trainer.settings.earlier_optimizer = OptimizerPlan("adamw_torch", {}, before["param_groups"], SAME)
    trainer.check_resumable(tmp_path / "a/checkpoint-6")
    trainer.train(resume_from_checkpoint=str(tmp_path / "a/checkpoint-6"))
    names = {id(each): name for name, each in trainer.model.named_parameters()}
    rates = {names[id(each)]: group["lr"] for group in trainer.optimizer.param_groups for each in group["params"]}
    assert rates["head.weight"] == rates["head.bias"] == 0.3
    assert {rate for name, rate in rates.items() if "head" not in name} == {0.01}


def test_groups_of_other_parameters_are_refused(tmp_path):
    model, args = Regression(), make_trainer(tmp_path, **RUN).args
    plans = [OptimizerPlan("adamw_torch", {}, [Spec(pattern, lr=0.1)]) for pattern in ("head", "linear")]
    with pytest.raises(ValueError, match="other parameters than those of the checkpoint"):
        changed_options(*(plan.build(model, args, {}).param_groups for plan in plans))


@pytest.mark.slow
def test_a_momentum_that_cycles_follows_a_changed_beta(tmp_path):
    """A CyclicLR writes the first beta at every step; the second stays what it was changed to."""
    cycle = {"base_lr": 0.01, "max_lr": 0.05, "step_size_up": 4, "cycle_momentum": True}
    plan = LRSchedulerConfig("CyclicLR", cycle, "step", learning_rate=0.05)
    trainer = resumed(tmp_path, {}, {"adam_beta2": 0.9}, schedule=plan)
    betas = trainer.optimizer.param_groups[0]["betas"]
    assert betas[1] == 0.9 and betas[0] != 0.9


@pytest.mark.slow
def test_going_on_is_tried_before_anything_is_written(tmp_path):
    make_trainer(tmp_path, **{**RUN, "lr_scheduler_type": "linear"}).train()
    checkpoint = tmp_path / "checkpoint-3"
    longer = make_trainer(tmp_path, **{**RUN, "lr_scheduler_type": "linear", "max_steps": 9})
    with pytest.raises(ValueError, match="resume_schedule: rebase"):
        longer.check_resumable(checkpoint)
    with pytest.raises(ValueError, match="2 parameter groups, this run has 4"):
        make_trainer(tmp_path, **RUN, param_groups=[Spec("head", lr=0.1)]).check_resumable(checkpoint)
