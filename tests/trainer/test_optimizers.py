"""Parameter groups and optimizers by name."""

import math
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from tiny_training import Regression, make_trainer
from torch import nn

import trainer.optimization.optimizers as optimizers
from loader.schema.installed import pytorch_optimizers
from trainer.optimization.optimizers import NOT_PLAIN, build_optimizer, optimizer_class, package_optimizers
from trainer.optimization.parameter_groups import group_rates, no_decay_lines, parameter_groups, undecayed_names
from trainer.serialization import state_dict_io


def spec(pattern, lr=None, lr_factor=None, weight_decay=None):
    return SimpleNamespace(pattern=pattern, lr=lr, lr_factor=lr_factor, weight_decay=weight_decay)


def named(model, group):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)] for parameter in group["params"]}


def arguments(**settings):
    """What `build_optimizer` reads of TrainingArguments, at its defaults."""
    defaults = {"optim": "adamw_torch", "optim_args": None, "learning_rate": 0.01, "weight_decay": 0.0}
    return SimpleNamespace(**{**defaults, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, **settings})


class Words(nn.Module):
    """One of everything: embedding, convolution, normalization, matrix, output head, scalar."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(7, 4)
        self.mix = nn.Conv1d(4, 4, 3, padding=1)
        self.norm = nn.LayerNorm(4)
        self.linear = nn.Linear(4, 6)
        self.head = nn.Linear(6, 2)
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, words):
        mixed = self.mix(self.embedding(words).transpose(1, 2)).transpose(1, 2)
        return self.scale * self.head(torch.tanh(self.linear(self.norm(mixed)))).mean(1)


def train(model, optimizer, seeds):
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        words, target = torch.randint(0, 7, (8, 5), generator=generator), torch.randn(8, 2, generator=generator)
        optimizer.zero_grad()
        ((model(words) - target) ** 2).mean().backward()
        optimizer.step()


def assert_same(one, other):
    for (name, ours), theirs in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def as_saved(state):
    with tempfile.TemporaryDirectory() as folder:
        state_dict_io.write(Path(folder), "optimizer", *state_dict_io.split(state))
        return state_dict_io.read(Path(folder), "optimizer")


def assert_resumes(build, steps=4):
    """Through a checkpoint's files, on a new model: as the run that was not interrupted."""
    whole, resumed = Words(), Words()
    first = build(whole)
    train(whole, first, range(steps))
    second = build(resumed)
    second.load_state_dict(second.state_dict())  # as accelerate does with every new optimizer
    resumed.load_state_dict(whole.state_dict())
    second.load_state_dict(as_saved(first.state_dict()))
    for model, optimizer in ((whole, first), (resumed, second)):
        torch.manual_seed(3)  # some draw random numbers
        train(model, optimizer, range(steps, 2 * steps))
    assert_same(whole, resumed)


HEAD = {"head": r"^head\."}


class RMSNormGated(nn.Module):  # as other libraries call theirs
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))


class ConvNextV2GRN(RMSNormGated):
    pass


def test_norms_are_known_by_type_and_biases_by_name():
    class Oddly(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.BatchNorm2d(3)  # nothing in its name says normalization
            self.ln_1 = nn.RMSNorm(3)
            self.normal = nn.Linear(3, 3)  # nor does this one's name make it one
            self.attention = nn.MultiheadAttention(4, 2)
            self.recurrent = nn.LSTM(2, 2)
            self.gated = RMSNormGated(3)
            self.response = ConvNextV2GRN(3)

    assert undecayed_names(Oddly()) == {
        "gated.weight",
        "response.weight",
        "recurrent.bias_ih_l0",
        "recurrent.bias_hh_l0",
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


def test_what_is_printed_of_groups():
    model = Regression()
    model.norm.weight.requires_grad_(False)
    assert no_decay_lines(model) == [
        "no weight decay on 3 of 5 trained parameters (7 values)",
        "  norm.bias (4,)",
        "  linear.bias (2,)",
        "  head.bias (1,)",
    ]
    groups = parameter_groups(model, 1e-3, 0.1, [spec("^head", lr=5e-4)])
    head = {"head.weight": 5e-4, "head.bias": 5e-4}
    assert group_rates(model, groups) == {"norm.bias": 1e-3, "linear.weight": 1e-3, "linear.bias": 1e-3} | head


# ---- names ----


UNUSABLE = ("Adamw", "ADAMW_TORCH", "lr_scheduler", "LBFGS", "SparseAdam", "lomo", "galore_adamw_layerwise")


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        *((name, {}, f"`{name}`") for name in UNUSABLE),
        *((name, {"lr": 0.1}, f"`{name}`.*`lr`.*`learning_rate`") for name in ("SGD", "adamw_torch")),
        *((name, {"weight_decay": 0.1}, f"`{name}`.*`weight_decay`") for name in ("SGD", "adamw_torch")),
        *((name, {"bogus": 1}, "bogus") for name in ("SGD", "adamw_torch", "Muon")),
        ("Rprop", {}, "`Rprop` has no weight decay"),
    ],
)
def test_what_cannot_be_built(name, options, text):
    with pytest.raises((ValueError, TypeError), match=text):
        build_optimizer(Words(), name, options, args=arguments(weight_decay=0.1))


def test_an_option_that_kwargs_would_swallow_is_refused():
    pytest.importorskip("pytorch_optimizer")
    with pytest.raises(ValueError, match="`Lion` takes no `bogus`"):
        build_optimizer(Words(), "Lion", {"bogus": 1}, args=arguments())


def test_without_the_package_its_names_say_what_to_install(monkeypatch):
    monkeypatch.setattr(optimizers, "package_optimizers", dict)
    assert optimizer_class("Adam") is torch.optim.Adam
    with pytest.raises(ValueError, match="pip install pytorch-optimizer"):
        optimizer_class("lion")


@pytest.mark.parametrize(
    ("name", "kind"), {"sgd": "SGD", "rmsprop": "RMSprop", "adagrad": "Adagrad", "adamw_torch": "AdamW"}.items()
)
def test_a_trainers_name_needs_no_other_argument(name, kind):
    """`args.optim` may still say something else."""
    args = arguments(optim="adafactor", weight_decay=0.1)
    built = build_optimizer(Words(), name, {}, args=args, specs=[spec("head", lr=0.5)])
    assert type(built).__name__ == kind
    groups = {(group["lr"], group["weight_decay"]) for group in built.param_groups}
    assert groups == {(0.01, 0.1), (0.01, 0.0), (0.5, 0.1), (0.5, 0.0)}


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("Adam", {}, {"betas": (0.9, 0.999), "eps": 1e-8}),
        ("Adam", {"adam_beta1": 0.7, "adam_epsilon": 1e-5}, {"betas": (0.7, 0.999), "eps": 1e-5}),
        ("Adagrad", {}, {"eps": 1e-10}),
        ("Adafactor", {"adam_epsilon": 1e-5}, {"eps": (None, 1e-3)}),  # not Adam's epsilon
        ("lion", {}, {"betas": (0.9, 0.99)}),
        ("lion", {"adam_beta1": 0.8}, {"betas": (0.8, 0.99)}),
        ("Adan", {"adam_beta1": 0.8}, {"betas": (0.98, 0.92, 0.99)}),
    ],
)
def test_adams_settings_reach_only_optimizers_that_have_them(name, settings, expected):
    if name in ("lion", "Adan"):
        pytest.importorskip("pytorch_optimizer")
    group = build_optimizer(Words(), name, {}, args=arguments(**settings)).param_groups[0]
    assert {key: group[key] for key in expected} == expected


def test_lists_of_yaml_become_tuples():
    group = build_optimizer(Words(), "AdamW", {"betas": [0.5, 0.6]}, args=arguments()).param_groups[0]
    assert group["betas"] == (0.5, 0.6)


@pytest.mark.slow
def test_adafactor_has_a_rate_or_steps_of_its_own():
    kind = transformers.optimization.Adafactor
    for options, truth in [
        ({}, {"lr": 0.01, "relative_step": False, "scale_parameter": False}),
        ({"relative_step": True}, {"lr": None}),
        ({"relative_step": True, "scale_parameter": False}, {"lr": None, "scale_parameter": False}),
    ]:
        model, other = Words(), Words()
        built = build_optimizer(model, "adafactor", options, args=arguments())
        assert all(isinstance(group["lr"], float) for group in built.param_groups)  # what a schedule multiplies
        original = kind(other.parameters(), **truth)
        train(model, built, range(3))
        train(other, original, range(3))
        for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.allclose(ours, theirs, atol=1e-7)


def test_low_rank_settings_reach_their_parameters(monkeypatch):
    """GaLore's and APOLLO's names come with groups that say which weights are projected, and how far."""

    class LowRank(torch.optim.SGD):
        pass

    def found(args, model):
        groups = [{"params": [model.head.bias]}, {"params": [model.linear.weight], "rank": 2}]
        return LowRank, {"lr": args.learning_rate, "params": groups}

    monkeypatch.setattr(transformers.Trainer, "get_optimizer_cls_and_kwargs", staticmethod(found))
    model = Words()
    built = build_optimizer(model, "galore_adamw", {}, args=arguments(weight_decay=0.1))
    projected = [group for group in built.param_groups if "rank" in group]
    assert [named(model, group) for group in projected] == [{"linear.weight"}] and projected[0]["rank"] == 2
    assert projected[0]["weight_decay"] == 0.1
    assert sum(len(group["params"]) for group in built.param_groups) == len(list(model.parameters()))


# ---- pytorch-optimizer ----


@pytest.mark.slow
@pytest.mark.parametrize("name", pytorch_optimizers())
def test_every_optimizer_of_the_package(name):
    """By the lower-case name too: it trains, saves plainly and goes on exactly; or it says why it cannot."""
    word = name.lower()
    if name in ("SGD", "Adam", "AdamW", "NAdam", "RMSprop"):
        assert optimizer_class(word) is optimizer_class(name) is getattr(torch.optim, name)
        return
    if name in NOT_PLAIN or name in optimizers.UNSUPPORTED:
        with pytest.raises(ValueError, match=f"`{word}`"):
            optimizer_class(word)
        return

    def build(model):
        torch.manual_seed(2)
        args = arguments(weight_decay=0.0)
        return build_optimizer(model, word, {}, args=args, parts=HEAD)

    steps = 12 if name in ("RAdam", "ScheduleFreeRAdam") else 3  # these take no step before the sixth
    model, before = Words(), Words()
    optimizer = build(model)
    train(model, optimizer, range(steps))
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    changed = [not torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True)]
    assert any(changed), "no parameter moved"
    assert all(group["lr"] == 0.01 for group in optimizer.param_groups), "the schedule's rate is overwritten"
    assert_resumes(build, steps)
    for group in optimizer.param_groups:  # as at the start of a warm-up
        group["lr"] = 0.0
    train(model, optimizer, range(2))
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_classes_that_are_not_plain_exist_and_torchs_own_come_first():
    pytest.importorskip("pytorch_optimizer")
    assert set(NOT_PLAIN) <= set(package_optimizers())
    assert optimizer_class("Muon") is torch.optim.Muon
    with pytest.raises(ValueError, match="`muon`"):
        optimizer_class("muon")  # the package's own


# ---- Muon ----


def muon(model, **settings):
    return build_optimizer(model, "Muon", settings, args=arguments(weight_decay=0.1, adam_beta2=0.95), parts=HEAD)


def test_muon_trains_matrices_and_adamw_the_rest():
    """Equal to torch's two optimizers, made and stepped by hand."""
    model, other = Words(), Words()
    built = muon(model, momentum=0.9)
    hidden = [other.linear.weight]
    decayed = [other.embedding.weight, other.mix.weight, other.head.weight]
    decayed.append(other.scale)  # neither a bias nor a norm
    plain = [
        parameter for parameter in other.parameters() if not any(parameter is known for known in (*hidden, *decayed))
    ]
    matrices = torch.optim.Muon(hidden, lr=0.01, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    rest = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95))
    for step in range(5):
        rate = 0.01 * (step + 1)
        for group in (*built.param_groups, *matrices.param_groups, *rest.param_groups):  # as a schedule would
            group["lr"] = rate
        train(model, built, [step])
        other.zero_grad()
        train(other, SimpleNamespace(zero_grad=lambda: None, step=lambda: (matrices.step(), rest.step())), [step])
        assert_same(model, other)


@pytest.mark.slow
def test_muon_is_saved_and_resumed_exactly():
    assert_resumes(muon)
    built = muon(Words())
    one_short = built.state_dict()
    one_short["param_groups"] = one_short["param_groups"][:-1]
    with pytest.raises(ValueError, match="saved optimizer has 2 parameter groups, this one 3"):
        built.load_state_dict(one_short)


def test_muon_under_accelerate_and_a_loss_scaler():
    from accelerate import Accelerator

    bare, wrapped = Words(), Words()
    train(bare, muon(bare), range(3))
    accelerated = Accelerator(cpu=True).prepare(muon(wrapped))
    train(wrapped, accelerated, range(3))
    assert_same(bare, wrapped)
    members = [group for member in accelerated.optimizer.members for group in member.param_groups]
    assert all(ours is theirs for ours, theirs in zip(accelerated.param_groups, members, strict=True))

    scaled, scaler = Words(), torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = muon(scaled)
    before = scaled.linear.weight.clone()
    scaler.scale(scaled(torch.zeros(2, 3, dtype=torch.long)).sum() * math.nan).backward()
    scaler.step(optimizer)  # a step that is not finite is skipped for both members
    assert torch.equal(before, scaled.linear.weight) and not optimizer.state


def test_muon_and_what_is_an_output():
    class Tied(Words):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(4, 7, bias=False)

        def get_output_embeddings(self):
            return self.out

    model = Tied()
    built = build_optimizer(model, "Muon", {}, args=arguments(), parts={})
    in_muon = {name for group in built.members[0].param_groups for name in named(model, group)}
    assert in_muon == {"linear.weight", "head.weight"}  # `out` says it is one; nothing here says that `head` is
    with pytest.raises(ValueError, match="trains weight matrices, and this model has none"):
        build_optimizer(nn.LayerNorm(3), "Muon", {}, args=arguments())


def test_muon_takes_the_options_of_both():
    built = muon(Words(), ns_steps=3, betas=[0.8, 0.9], eps=1e-6)
    matrices, rest = built.members
    assert matrices.defaults["ns_steps"] == 3 and matrices.defaults["eps"] == 1e-6
    assert rest.defaults["betas"] == (0.8, 0.9) and rest.defaults["eps"] == 1e-8


def test_one_step_of_muon_is_as_large_as_adamws():
    """So that one learning rate fits both: root mean square of the update, 0.2 to 0.4 of the rate, against 1."""
    torch.manual_seed(0)
    layer = nn.Linear(64, 32, bias=False)
    before = layer.weight.detach().clone()
    optimizer = build_optimizer(layer, "Muon", {}, args=arguments())
    layer(torch.randn(256, 64)).pow(2).sum().backward()
    optimizer.step()
    assert 0.1 < (layer.weight - before).pow(2).mean().sqrt().item() / 0.01 < 0.4


# ---- in a Trainer ----


def test_the_trainer_uses_the_named_optimizer_with_its_options(tmp_path):
    options = {"momentum": 0.9, "nesterov": True}
    optimizer = make_trainer(tmp_path, optimizer_name="SGD", optimizer_options=options).create_optimizer()
    assert type(optimizer) is torch.optim.SGD
    assert all({**group, **options, "lr": 0.05} == group for group in optimizer.param_groups)


@pytest.mark.parametrize("name", ["AdamW", "adamw_torch"])
def test_adam_flags_reach_torch_classes_and_trainer_names_alike(tmp_path, name):
    trainer = make_trainer(tmp_path, optimizer_name=name, adam_beta1=0.7, adam_beta2=0.8, adam_epsilon=1e-5)
    group = trainer.create_optimizer().param_groups[0]
    assert tuple(group["betas"]) == (0.7, 0.8) and group["eps"] == 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["linear", "cosine", "polynomial", "inverse_sqrt", "constant", "reduce_lr_on_plateau"])
def test_every_schedule_is_built_once_and_trains(tmp_path, kind):
    trainer = make_trainer(tmp_path, max_steps=4, lr_scheduler_type=kind, eval_strategy="steps", eval_steps=2)
    optimizer, schedule = trainer.built_optimizer, trainer.built_schedule
    trainer.train()
    assert trainer.optimizer.optimizer is optimizer and trainer.lr_scheduler is schedule
    assert schedule.step_count == 4 and optimizer.state
    trainer.optimizer = None  # as DeepSpeed's integration does
    assert trainer.create_optimizer() is optimizer


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"bogus": 1}}, ("cosine", "bogus")),
        ({"optimizer_name": "adamw_torch", "optimizer_options": {"bogus": 1}}, ("adamw_torch", "bogus")),
        ({"optimizer_name": "LBFGS"}, ("LBFGS",)),
        ({"warmup_steps": 9, "max_steps": 9}, ("9",)),
    ],
)
def test_what_cannot_be_built_is_one_line_before_the_folder_is_made(tmp_path, settings, names):
    with pytest.raises(ValueError) as raised:
        make_trainer(tmp_path / "out", **settings)
    assert all(name in str(raised.value) for name in names) and "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()
