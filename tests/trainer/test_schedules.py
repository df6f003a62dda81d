"""Schedules against torch's and transformers' own classes, stepped by hand."""

import dataclasses
import json
import math
import warnings

import pytest
import torch
import transformers
from torch.optim import lr_scheduler
from transformers.trainer_utils import SchedulerType

from trainer.optimization.lr_curves import LRSchedulerConfig, stand_in_for
from trainer.optimization.lr_scheduler import Schedule, check_plan, planned_rates, schedule_lines

BASES = [0.1, 0.02]
TRAINER_OPTIONS = {
    "cosine_with_restarts": {"num_cycles": 3},
    "polynomial": {"lr_end": 1e-4, "power": 2.0},
    "cosine_with_min_lr": {"min_lr": 0.01},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.2},
    "warmup_stable_decay": {"num_decay_steps": 6},
}
TORCH_OPTIONS = {
    "StepLR": {"step_size": 4, "gamma": 0.5},
    "MultiStepLR": {"milestones": [3, 9], "gamma": 0.3},
    "ConstantLR": {"factor": 0.5, "total_iters": 4},
    "LinearLR": {"start_factor": 0.2, "total_iters": 7},
    "ExponentialLR": {"gamma": 0.9},
    "PolynomialLR": {"total_iters": 12, "power": 2.0},
    "CosineAnnealingLR": {"T_max": 10, "eta_min": 1e-3},
    "CosineAnnealingWarmRestarts": {"T_0": 4, "T_mult": 2},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 3, "cycle_momentum": False},
    "OneCycleLR": {"max_lr": 0.1, "total_steps": 25},
}


def optimizer_at(bases, **settings):
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": base} for base in bases]
    return torch.optim.SGD(groups, lr=bases[0], **{"momentum": 0.9, **settings})


def plan_for(name, options=None, **settings):
    return LRSchedulerConfig(name=name, options=options or {}, **{"learning_rate": BASES[0], **settings})


def by_hand(make, steps, bases=BASES, moves=lambda step: True):
    """Rates before each step of torch's own scheduler over these groups; it is stepped after steps that `moves`."""
    optimizer = optimizer_at(bases)
    scheduler, rates = make(optimizer), []
    for step in range(1, steps + 1):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        if moves(step):
            scheduler.step()
    return rates


def torch_by_hand(name, steps, options=None, bases=BASES, **how):
    options = dict(options or {})
    for key in ("max_lr", "base_lr"):  # absolute values: a group with another rate has them in proportion
        if key in options:
            options[key] = [options[key] * (base / bases[0]) for base in bases]
    return by_hand(lambda optimizer: getattr(lr_scheduler, name)(optimizer, **options), steps, bases, **how)


def ramp(length):
    return [[base * (step / length) for base in BASES] for step in range(length)]


# ---- equal to the originals ----


@pytest.mark.parametrize("warmup", [0, 5, 0.13])
@pytest.mark.parametrize("name", [each.value for each in SchedulerType])
def test_transformers_names_give_its_very_rates(name, warmup):
    options = TRAINER_OPTIONS.get(name, {})
    steps = 23
    length = transformers.TrainingArguments.get_warmup_steps(
        dataclasses.make_dataclass("A", ["warmup_steps"])(warmup), steps
    )
    original = {"constant": "constant_with_warmup", "reduce_lr_on_plateau": "constant_with_warmup"}
    original["greedy"] = "constant_with_warmup"  # nothing is observed here
    truth = by_hand(
        lambda optimizer: transformers.get_scheduler(original.get(name, name), optimizer, length, steps, options), steps
    )
    assert planned_rates(plan_for(name, options, warmup_steps=warmup), steps, 5, BASES) == truth


@pytest.mark.parametrize("warmup", [0, 6])
@pytest.mark.parametrize("name", TORCH_OPTIONS)
def test_torch_classes_by_step(name, warmup):
    truth = ramp(warmup) + torch_by_hand(name, 24 - warmup, TORCH_OPTIONS[name])
    assert planned_rates(plan_for(name, TORCH_OPTIONS[name], warmup_steps=warmup), 24, 5, BASES) == truth


def test_every_torch_class_is_covered_here():
    composed = {"SequentialLR", "ChainedScheduler", "ReduceLROnPlateau"}
    refused = {"LambdaLR", "MultiplicativeLR", "LRScheduler"}
    kinds = (kind for kind in vars(lr_scheduler).values() if isinstance(kind, type))
    names = {kind.__name__ for kind in kinds if issubclass(kind, lr_scheduler.LRScheduler)}
    assert {name for name in names if not name.startswith("_")} == set(TORCH_OPTIONS) | composed | refused


@pytest.mark.parametrize("frequency", [1, 2])
@pytest.mark.parametrize("name", ["ExponentialLR", "StepLR", "CosineAnnealingLR"])
def test_epochs_are_the_true_ones_whatever_the_warmup(name, frequency):
    """Epochs of 5 steps and 7 of warm-up: the first move is at step 10."""
    options = TORCH_OPTIONS[name]
    plan = plan_for(name, options, interval="epoch", frequency=frequency, warmup_steps=7)
    truth = torch_by_hand(name, 43, options, moves=lambda step: step % (5 * frequency) == 0 and step > 7)
    rates = planned_rates(plan, 43, 5, BASES)
    assert rates[:7] == ramp(7)
    assert rates[7:] == truth[7:]
    assert rates[0] != rates[42] != rates[9] and rates[7] == rates[9]


def test_a_frequency_of_steps_counts_from_the_warmup():
    plan = plan_for("ExponentialLR", {"gamma": 0.5}, interval="step", frequency=3, warmup_steps=2)
    truth = torch_by_hand("ExponentialLR", 10, {"gamma": 0.5}, moves=lambda step: step % 3 == 0)
    assert planned_rates(plan, 12, 5, BASES) == ramp(2) + truth


def test_warmup_in_epochs():
    assert planned_rates(plan_for("constant", warmup_epochs=1.5), 12, 4, BASES)[:6] == ramp(6)
    assert planned_rates(plan_for("linear", warmup_epochs=2), 12, 3, BASES)[:6] == ramp(6)


def test_lists_of_schedules():
    def sequence(optimizer):
        first = lr_scheduler.ConstantLR(optimizer, factor=0.1, total_iters=50)
        second = lr_scheduler.CosineAnnealingLR(optimizer, T_max=9)  # what is left of 14
        return lr_scheduler.SequentialLR(optimizer, [first, second], milestones=[5])

    entries = [{"name": "ConstantLR", "factor": 0.1, "total_iters": 50}, {"name": "CosineAnnealingLR"}]
    plan = plan_for("SequentialLR", {"schedulers": entries, "milestones": [5]}, warmup_steps=4)
    assert planned_rates(plan, 18, 5, BASES) == ramp(4) + by_hand(sequence, 14)

    def chain(optimizer):
        first = lr_scheduler.ConstantLR(optimizer, factor=0.1, total_iters=3)
        return lr_scheduler.ChainedScheduler([first, lr_scheduler.ExponentialLR(optimizer, gamma=0.9)], optimizer)

    entries = [{"name": "ConstantLR", "factor": 0.1, "total_iters": 3}, {"name": "ExponentialLR", "gamma": 0.9}]
    assert planned_rates(plan_for("ChainedScheduler", {"schedulers": entries}), 18, 5, BASES) == by_hand(chain, 18)


def test_what_is_not_given_is_the_length_of_the_run():
    epochs = plan_for("CosineAnnealingLR", interval="epoch")
    assert planned_rates(epochs, 40, 4, BASES) == torch_by_hand(
        "CosineAnnealingLR", 40, {"T_max": 10}, moves=lambda step: step % 4 == 0
    )
    steps = plan_for("CosineAnnealingLR", warmup_steps=10)
    assert planned_rates(steps, 40, 4, BASES)[10:] == torch_by_hand("CosineAnnealingLR", 30, {"T_max": 30})
    polynomial = plan_for("PolynomialLR", decay_steps=20)
    assert planned_rates(polynomial, 40, 4, BASES)[:20] == torch_by_hand("PolynomialLR", 20, {"total_iters": 20})
    cycle = planned_rates(plan_for("OneCycleLR"), 40, 4, BASES)
    assert cycle == torch_by_hand("OneCycleLR", 40, {"max_lr": BASES[0], "total_steps": 41})
    assert max(rate for rate, _ in cycle) == pytest.approx(BASES[0], rel=0.01)


def test_a_cycle_that_is_over_stays_at_its_end():
    rates = planned_rates(plan_for("OneCycleLR", {"total_steps": 10}), 20, 5)
    assert rates[10:] == [rates[9]] * 10 and rates[9][0] < 1e-5


def test_a_cycle_moves_the_real_optimizers_momentum():
    for make in (torch.optim.AdamW, torch.optim.SGD):
        settings = {"momentum": 0.5} if make is torch.optim.SGD else {"betas": (0.5, 0.9)}
        optimizer, truth = (make([torch.nn.Parameter(torch.zeros(1))], lr=0.1, **settings) for _ in range(2))
        schedule = Schedule(optimizer, plan_for("OneCycleLR"), 9, 3)
        original = lr_scheduler.OneCycleLR(truth, max_lr=0.1, total_steps=10)
        for _ in range(9):
            for key in ("lr", *settings):
                assert optimizer.param_groups[0][key] == truth.param_groups[0][key]
            truth.step()
            original.step()
            schedule.step()
    adafactor = torch.optim.Adafactor([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(ValueError, match="`OneCycleLR` cannot be built: .*cycle_momentum: false"):
        Schedule(adafactor, plan_for("OneCycleLR"), 9, 3)
    Schedule(adafactor, plan_for("OneCycleLR", {"cycle_momentum": False}), 9, 3)


# ---- floors and ends ----


@pytest.mark.parametrize("name", ["linear", "cosine", "cosine_with_restarts", "warmup_stable_decay"])
def test_a_decay_to_min_lr(name):
    """lr = min + (base - min) · factor after the warm-up; min in proportion to a group's base."""
    options = TRAINER_OPTIONS.get(name, {})
    plan = plan_for(name, options, warmup_steps=4, min_lr=0.01)
    plain = planned_rates(dataclasses.replace(plan, min_lr=None), 20, 5, BASES)
    rates = planned_rates(plan, 20, 5, BASES)
    assert rates[:4] == plain[:4]
    for row, without in zip(rates[4:], plain[4:], strict=True):
        for rate, factor, base, low in zip(row, without, BASES, (0.01, 0.002), strict=True):
            assert rate == pytest.approx(low + (base - low) * factor / base, rel=1e-12)
    optimizer = optimizer_at(BASES)
    schedule = Schedule(optimizer, plan, 20, 5)
    for _ in range(20):
        schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.002], rel=1e-12)


def test_min_lr_of_names_that_have_such_an_option():
    steps = {"polynomial": "lr_end", "cosine_with_min_lr": "min_lr", "cosine_warmup_with_min_lr": "min_lr"}
    for name, option in steps.items():
        truth = planned_rates(plan_for(name, {option: 0.01}, warmup_steps=3), 20, 5, BASES)
        for ours, theirs in zip(
            planned_rates(plan_for(name, min_lr=0.01, warmup_steps=3), 20, 5, BASES), truth, strict=True
        ):
            assert ours == pytest.approx(theirs, rel=1e-12)


def test_a_floor_does_not_feed_back():
    """ExponentialLR multiplies its last rate: fed with the floor, two floored groups could never drift further."""
    plan = plan_for("ChainedScheduler", {"schedulers": [{"name": "StepLR", "step_size": 2, "gamma": 0.1}]}, min_lr=0.05)
    rates = planned_rates(plan, 6, 5, BASES)
    assert rates == [[0.1, 0.02]] * 2 + [[0.05, 0.01]] * 4
    cosine = planned_rates(plan_for("CosineAnnealingLR", {"T_max": 5}, min_lr=0.05), 11, 5)
    truth = torch_by_hand("CosineAnnealingLR", 11, {"T_max": 5}, bases=BASES[:1])
    assert cosine == [[max(rate, 0.05)] for (rate,) in truth]  # and up again, as torch's does


@pytest.mark.parametrize("name", ["linear", "cosine", "CosineAnnealingLR", "ExponentialLR"])
def test_after_the_decay_the_rate_stays(name):
    options = {"gamma": 0.9} if name == "ExponentialLR" else {}
    whole = planned_rates(plan_for(name, options, warmup_steps=3), 13, 5, BASES)
    rates = planned_rates(plan_for(name, options, warmup_steps=3, decay_steps=12), 30, 5, BASES)
    shorter = planned_rates(plan_for(name, options, warmup_steps=3), 12, 5, BASES)
    assert rates[:12] == shorter if name != "ExponentialLR" else whole[:12]
    assert rates[13:] == [rates[12]] * 17
    if name != "ExponentialLR":
        assert rates[12] == pytest.approx([0, 0], abs=1e-9)


# ---- metrics ----


def test_a_plateau_after_a_warmup():
    """Observations of the warm-up do not count; those after it act as on torch's own."""
    optimizer, truth = optimizer_at(BASES), optimizer_at(BASES)
    plan = plan_for("ReduceLROnPlateau", {"patience": 1, "mode": "max"}, warmup_steps=4, monitor="accuracy")
    schedule = Schedule(optimizer, plan, 100, 2)
    assert schedule.plan.needs_metric == "accuracy"
    original = lr_scheduler.ReduceLROnPlateau(truth, mode="max", factor=0.5, patience=1, threshold=1e-3)
    values = iter([0.9, 0.1, math.nan, 0.1, 0.05, 0.3, math.inf, -1.0, 0.3001, 0.2, 0.5])
    applied = []
    for value in values:
        for _ in range(2):
            schedule.step()
        schedule.observe(value)
        if schedule.step_count >= 4:
            original.step(math.nan if math.isinf(value) else value)  # infinity is no improvement
        applied.append([group["lr"] for group in optimizer.param_groups])
        if schedule.step_count >= 4:
            assert applied[-1] == [group["lr"] for group in truth.param_groups] == schedule.get_last_lr()
    assert applied[0] == [0.05, 0.01] and applied[-1][0] < 0.05


def test_plateau_defaults_frequency_floor_and_end():
    optimizer = optimizer_at(BASES)
    schedule = Schedule(optimizer, plan_for("ReduceLROnPlateau", frequency=2, min_lr=0.04, decay_steps=50), 60, 1)
    rates = []
    for _ in range(40):
        schedule.step()
        schedule.observe(1.0)
        rates.append(schedule.get_last_lr())
    # The first counts as an improvement, then six bad ones (patience 5), each two evaluations apart.
    assert [row[0] for row in rates].index(0.05) == 2 * 7 - 1
    assert rates[-1] == pytest.approx([0.04, 0.008])
    for _ in range(10):
        schedule.step()
    before = schedule.state_dict()["curve"]
    schedule.observe(5.0)
    assert schedule.state_dict()["curve"] == before


def test_transformers_plateau_and_greedy_are_its_own():
    values = [1.0, 0.9, 0.95, 0.95, math.nan, 0.95, 0.8, 0.7, 0.6, 0.5, 0.9, 0.9, 0.9]
    options = {"patience": 1, "factor": 0.5, "min_lr": 1e-3}
    for name in ("reduce_lr_on_plateau", "greedy"):
        optimizer, truth, seen = optimizer_at(BASES), optimizer_at(BASES), set()
        schedule = Schedule(optimizer, plan_for(name, options), 100, 1)
        original = transformers.get_scheduler(name, truth, scheduler_specific_kwargs=options)
        assert schedule.plan.needs_metric == "eval_loss"
        for value in values:
            schedule.step()
            schedule.observe(value)
            original.step(value)
            assert [g["lr"] for g in optimizer.param_groups] == [g["lr"] for g in truth.param_groups]
            seen.add(truth.param_groups[0]["lr"])
        assert len(seen) > 2
    smooth = Schedule(optimizer_at(BASES), plan_for("greedy", options | {"smooth": True}), 100, 1)
    for value in (1.0, math.nan, *[2.0] * 8):  # one NaN must not stay in the average
        smooth.observe(value)
    assert smooth.state_dict()["curve"]["average"]["sum"] == 17.0


def test_the_training_loss_by_its_names():
    for name in ("loss", "train_loss", "train/loss"):
        assert plan_for("ReduceLROnPlateau", monitor=name).follows_training_loss
    assert not any(plan.follows_training_loss for plan in (plan_for("ReduceLROnPlateau"), plan_for("linear")))
    assert plan_for("linear").needs_metric is None


# ---- saved, resumed, rebased ----

SAVED = [
    plan_for("cosine", warmup_steps=5),
    plan_for("ExponentialLR", {"gamma": 0.9}, warmup_steps=5),
    plan_for("CosineAnnealingLR", interval="epoch"),
    plan_for("CosineAnnealingWarmRestarts", {"T_0": 3}),
    plan_for("OneCycleLR"),
    plan_for(
        "SequentialLR",
        {"schedulers": [{"name": "LinearLR"}, {"name": "StepLR", "step_size": 2}], "milestones": [6]},
    ),
    plan_for("ReduceLROnPlateau", {"patience": 1, "cooldown": 1}, warmup_steps=3),
    plan_for("greedy", {"patience": 1, "min_lr": 1e-3, "smooth": True}),
]


@pytest.mark.parametrize("at", [0, 2, 11])
@pytest.mark.parametrize("plan", SAVED, ids=lambda plan: plan.name)
def test_a_saved_schedule_goes_on_exactly(plan, at):
    def advance(schedule, first, last):
        rates = []
        for step in range(first, last):
            schedule.step()
            if schedule.plan.needs_metric:
                schedule.observe(1.0 + 0.3 * math.sin(step))
            rates.append([group["lr"] for group in schedule.optimizer.param_groups])
        return rates

    whole = Schedule(optimizer_at(BASES), plan, 20, 4)
    truth = advance(whole, 0, 20)
    first = Schedule(optimizer_at(BASES), plan, 20, 4)
    advance(first, 0, at)
    second = Schedule(optimizer_at(BASES), plan, 20, 4)
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    assert first.state_dict() == second.state_dict()
    assert second.get_last_lr() == first.get_last_lr()
    assert advance(second, at, 20) == truth[at:]


def test_another_schedules_state_is_refused():
    state = Schedule(optimizer_at(BASES), plan_for("linear"), 9, 3).state_dict()
    schedule = Schedule(optimizer_at(BASES), plan_for("cosine"), 9, 3)
    with pytest.raises(ValueError, match="checkpoint's schedule is `linear`, this run's is `cosine`"):
        schedule.load_state_dict(state)
    stock = transformers.get_scheduler("cosine", optimizer_at(BASES), 1, 9).state_dict()
    with pytest.raises(ValueError, match="another trainer's schedule"):
        schedule.load_state_dict(stock)


@pytest.mark.parametrize("at", [2, 9])
@pytest.mark.parametrize("plan", SAVED[:6], ids=lambda plan: plan.name)
def test_a_rebased_schedule_is_as_if_it_had_begun_so(plan, at):
    plan = dataclasses.replace(plan, min_lr=0.003)
    new = [0.3, 0.06]
    optimizer = optimizer_at(BASES)
    schedule = Schedule(optimizer, plan, 20, 4)
    for _ in range(at):
        schedule.step()
    schedule.rebase(new)
    rates = []
    for _ in range(at, 20):
        rates.append([group["lr"] for group in optimizer.param_groups])
        schedule.step()
    truth = planned_rates(dataclasses.replace(plan, learning_rate=0.3), 20, 4, new)
    for ours, theirs in zip(rates, truth[at:], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-12)
    assert [group["initial_lr"] for group in optimizer.param_groups] == new
    again = Schedule(optimizer_at(BASES), plan, 20, 4)
    again.load_state_dict(schedule.state_dict())
    assert again.get_last_lr() == schedule.get_last_lr()
    with pytest.raises(ValueError, match="min_lr 0.003 is above the learning rate, 0.001"):
        again.rebase([0.001, 0.0002])


def test_a_rebased_plateau_keeps_its_reductions():
    schedule = Schedule(optimizer_at(BASES), plan_for("ReduceLROnPlateau", {"patience": 0}, warmup_steps=2), 20, 4)
    schedule.step()
    schedule.rebase([0.4, 0.08])
    assert schedule.get_last_lr() == pytest.approx([0.2, 0.04])  # half-way up, to the new rates
    schedule.step()
    schedule.observe(1.0)
    schedule.observe(1.0)
    assert schedule.get_last_lr() == pytest.approx([0.2, 0.04])
    schedule.rebase([1.0, 1.0])
    assert schedule.get_last_lr() == pytest.approx([0.5, 0.5])
    schedule.observe(1.0)
    assert schedule.get_last_lr() == pytest.approx([0.25, 0.25])


# ---- in a Trainer ----


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 1)

    def forward(self, x, y):
        return {"loss": ((self.linear(x)[:, 0] - y) ** 2).mean()}


class Scheduled(transformers.Trainer):
    """transformers' Trainer, which steps whatever `create_scheduler` gives it; evaluations are shown to it."""

    def __init__(self, folder, plan, **settings):
        torch.manual_seed(0)
        data = [{"x": torch.randn(3), "y": torch.randn(())} for _ in range(40)]
        defaults = {"per_device_train_batch_size": 4, "logging_steps": 1, "save_strategy": "no", "report_to": "none"}
        defaults |= {"disable_tqdm": True, "use_cpu": True, "learning_rate": plan.learning_rate, "label_names": ["y"]}
        args = transformers.TrainingArguments(str(folder), **defaults | settings)
        super().__init__(Line(), args, train_dataset=data, eval_dataset=data[:8])
        self.plan = plan

    def create_scheduler(self, num_training_steps, optimizer=None):
        epoch = 10 // self.args.gradient_accumulation_steps
        self.lr_scheduler = Schedule(self.optimizer, self.plan, num_training_steps, epoch)
        return self.lr_scheduler

    def evaluate(self, *arguments, **options):
        metrics = super().evaluate(*arguments, **options)
        self.lr_scheduler.observe(metrics[self.plan.needs_metric])
        return metrics

    def logged(self, key="learning_rate"):
        return {entry["step"]: entry[key] for entry in self.state.log_history if key in entry}


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("kind", ["epoch", "step", "linear"])
def test_a_trainer_applies_the_planned_rates(tmp_path, kind, accumulation):
    """Logged at every step, and equal to torch's class moved by hand at the ends of the epochs."""
    plan = LRSchedulerConfig("ExponentialLR", {"gamma": 0.8}, interval=kind, warmup_steps=4, learning_rate=0.05)
    if kind == "linear":
        plan = LRSchedulerConfig("linear", warmup_steps=4, learning_rate=0.05)
    trainer = Scheduled(tmp_path, plan, num_train_epochs=3, gradient_accumulation_steps=accumulation)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*lr_scheduler.*")
        trainer.train()
    logged = list(trainer.logged().values())
    epoch, steps = 10 // accumulation, 30 // accumulation
    assert len(logged) == steps and logged == [row[0] for row in planned_rates(plan, steps, epoch)]
    if kind == "linear":
        truth = by_hand(lambda optimizer: transformers.get_scheduler("linear", optimizer, 4, steps), steps, [0.05])
    else:
        every = epoch if kind == "epoch" else 1
        truth = torch_by_hand(
            "ExponentialLR", steps, {"gamma": 0.8}, [0.05], moves=lambda step: step > 4 and step % every == 0
        )
        truth[:4] = [[0.05 * (step / 4)] for step in range(4)]
    assert logged == [row[0] for row in truth]


@pytest.mark.slow
def test_a_plateau_in_a_trainer_and_after_a_resume(tmp_path):
    """The rates of a run that was resumed are those of the whole one, and those of torch's plateau by hand."""
    plan = LRSchedulerConfig("ReduceLROnPlateau", {"patience": 0, "threshold": 0.1}, warmup_steps=3, learning_rate=0.05)
    settings = {"max_steps": 16, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 8}
    whole = Scheduled(tmp_path / "whole", plan, **settings)
    whole.train()
    truth = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.05)
    original = lr_scheduler.ReduceLROnPlateau(truth, factor=0.5, patience=0, threshold=0.1)
    losses, rates = whole.logged("eval_loss"), whole.logged()
    for step in range(1, 17):
        assert rates[step] == (0.05 * ((step - 1) / 3) if step <= 3 else truth.param_groups[0]["lr"])
        if step > 3 and step in losses:
            original.step(losses[step])
    assert rates[16] < 0.05
    resumed = Scheduled(tmp_path / "resumed", plan, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-8"))
    assert resumed.logged() == rates


# ---- what is refused, and what is printed ----

SEQUENCE = {"schedulers": [{"name": "StepLR", "step_size": 2}, {"name": "ExponentialLR", "gamma": 0.9}]}
REFUSED = [  # a schedule, and the value or the name that the error must show
    (plan_for("steplr", {"step_size": 2}), "steplr"),
    (plan_for("LambdaLR"), "lr_lambda"),
    (plan_for("linear", {"bogus": 1}), "bogus"),
    (plan_for("StepLR", {"step_sise": 1}), "step_sise"),
    (plan_for("StepLR"), "step_size"),
    (plan_for("CyclicLR"), "base_lr"),
    (plan_for("warmup_stable_decay"), "num_decay_steps"),
    (plan_for("cosine_with_min_lr"), "min_lr"),
    (plan_for("ExponentialLR", {"gamma": "a"}), "multiply"),
    (plan_for("ReduceLROnPlateau", {"factor": 2.0}), "Factor"),
    (plan_for("linear", min_lr=0.2), "0.2"),
    (plan_for("polynomial", {"lr_end": 0.01}, min_lr=0.01), "lr_end"),
    (plan_for("SequentialLR", SEQUENCE), "milestones"),
    (plan_for("SequentialLR", SEQUENCE | {"milestones": [1, 2]}), "[1, 2]"),
    (plan_for("SequentialLR", SEQUENCE | {"milestones": [0]}), "[0]"),
    (plan_for("SequentialLR", SEQUENCE | {"milestones": 5}), "5"),
    (plan_for("SequentialLR", {"schedulers": ["StepLR"], "milestones": []}), "schedulers"),
    (plan_for("ChainedScheduler", {"schedulers": [{"name": "ReduceLROnPlateau"}]}), "schedulers"),
    (plan_for("ChainedScheduler", {"schedulers": [{"name": "StepLR", "gama": 1}]}), "gama"),
]


@pytest.mark.parametrize("plan, value", REFUSED, ids=[f"{plan.name}-{i}" for i, (plan, _) in enumerate(REFUSED)])
def test_what_cannot_be_built_is_one_line(plan, value):
    with pytest.raises(ValueError) as raised:
        check_plan(plan)
    assert value in str(raised.value) and "\n" not in str(raised.value)
    assert f"`{plan.name}`" in str(raised.value) or plan.min_lr == 0.2


@pytest.mark.parametrize("plan", SAVED, ids=lambda plan: plan.name)
def test_what_fits_passes(plan):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_plan(plan)


def test_a_warmup_longer_than_the_schedule_is_told():
    with pytest.raises(ValueError, match="ends after 20 steps, before its 25 of warm-up"):
        Schedule(optimizer_at(BASES), plan_for("linear", warmup_steps=0.5, decay_steps=20), 50, 5)


def plan_lines(plan, total_steps, steps_per_epoch):
    stand_in = stand_in_for([plan.learning_rate], plan.learning_rate)
    return schedule_lines(Schedule(stand_in, plan, total_steps, steps_per_epoch))


def test_the_printed_curve():
    plan = plan_for("linear", warmup_steps=10)
    rates = planned_rates(plan, 100, 10)
    shown = ", ".join(f"{rates[step][0]:.3g} at {step}" for step in (0, 10, 25, 50, 75, 99))
    assert plan_lines(plan, 100, 10) == ["learning rate schedule linear, every step, 10 steps of warm-up", f"  {shown}"]
    slow = plan_for("ExponentialLR", {"gamma": 0.5}, interval="epoch", frequency=2)
    assert plan_lines(slow, 40, 10)[0] == "learning rate schedule ExponentialLR, every 2 epochs"
    assert plan_lines(plan_for("ReduceLROnPlateau"), 40, 10)[0].endswith("following eval_loss")


def test_two_cycles_one_after_the_other():
    """Each is in proportion to the groups' own base rates, not to what the first has made of them."""
    cycle = {"name": "OneCycleLR", "max_lr": 0.1, "total_steps": 10}
    options = {"schedulers": [cycle, cycle], "milestones": [10]}
    rates = planned_rates(plan_for("SequentialLR", options=options, learning_rate=0.1), 20, 20, BASES)
    peaks = [max(rate[group] for rate in part) for part in (rates[:10], rates[10:]) for group in (0, 1)]
    assert peaks == pytest.approx([0.1, 0.02, 0.1, 0.02])
