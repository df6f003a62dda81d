"""Losses by name, against torch's own functions and formulas written out by hand."""

import importlib
import math
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn import functional as F

from loader.schema.keys import component_module, shipped
from models.losses import asymmetric, bce, cross_entropy, focal

ROOT = Path(__file__).resolve().parents[2]


def multi_label_batch(samples=6, labels=4):
    random = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(samples, labels, generator=random)
    return logits, (torch.rand(samples, labels, generator=random) < 0.4).float()


def value(loss, logits, labels):
    return loss({"logits": logits}, {"labels": labels})["loss"]


MULTI_LABEL = {
    "bce": lambda: bce.build(bce.Config(pos_weight=[2.0, 0.5, 7.0, 1.0])),
    "focal": lambda: focal.build(focal.Config(gamma=2.0)),
    "asymmetric": lambda: asymmetric.build(asymmetric.Config()),
}


@pytest.mark.keys("loss(bce).pos_weight")
@pytest.mark.parametrize("pos_weight", [None, [2.0, 0.5, 7.0, 1.0]])
def test_binary_cross_entropy_is_that_of_torch(pos_weight):
    logits, labels = multi_label_batch()
    weight = None if pos_weight is None else torch.tensor(pos_weight)
    expected = F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weight)
    torch.testing.assert_close(value(bce.build(bce.Config(pos_weight=pos_weight)), logits, labels), expected)


@pytest.mark.keys("loss(bce).pos_weight")
def test_auto_takes_the_weights_of_the_data():
    logits, labels = multi_label_batch()
    loss = bce.build(bce.Config(pos_weight="auto"))
    loss.fit({"positives": [10, 32, 0, 40], "samples": 40})
    weight = torch.tensor([3.0, 0.25, 1.0, 1.0])  # 1 without positives, and without negatives
    expected = F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weight)
    torch.testing.assert_close(value(loss, logits, labels), expected)


def test_weights_that_do_not_fit_the_data_are_refused():
    with pytest.raises(ValueError, match="auto"):
        bce.build(bce.Config(pos_weight="auto")).fit({})
    with pytest.raises(ValueError, match=r"3.*4"):
        bce.build(bce.Config(pos_weight=[1.0, 2.0, 3.0])).fit({"positives": [1, 2, 3, 4], "samples": 9})
    with pytest.raises(ValueError, match="pos_weight"):
        bce.Config(pos_weight=[1.0, 0.0])
    bce.build(bce.Config()).fit({})


@pytest.mark.keys("loss(focal).gamma")
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_of_independent_labels_by_hand(gamma):
    logits, labels = multi_label_batch()
    total = 0.0
    for score, label in zip(logits.flatten().tolist(), labels.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-score))
        p_true = p if label else 1 - p
        total -= (1 - p_true) ** gamma * math.log(p_true)
    result = value(focal.build(focal.Config(gamma=gamma)), logits, labels)
    assert result.item() == pytest.approx(total / 24, rel=1e-5)


@pytest.mark.keys("loss(asymmetric).gamma_neg", "loss(asymmetric).gamma_pos", "loss(asymmetric).clip")
@pytest.mark.parametrize("gamma_neg", [0.0, 0.5, 4.0])
@pytest.mark.parametrize("gamma_pos", [0.0, 1.0])
@pytest.mark.parametrize("clip", [0.0, 0.05, 0.3])
def test_asymmetric_loss_by_hand(gamma_neg, gamma_pos, clip):
    logits, labels = multi_label_batch()
    total = 0.0
    for score, label in zip(logits.flatten().tolist(), labels.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-score))
        q = max(p - clip, 0)
        total -= (1 - p) ** gamma_pos * math.log(p) if label else q**gamma_neg * math.log(1 - q)
    config = asymmetric.Config(gamma_neg=gamma_neg, gamma_pos=gamma_pos, clip=clip)
    assert value(asymmetric.build(config), logits, labels).item() == pytest.approx(total / 24, rel=1e-5)


@pytest.mark.parametrize("name", MULTI_LABEL)
def test_extreme_logits_have_finite_losses_and_gradients(name):
    logits = torch.tensor([[-200.0, -20, 20, 200], [-200, -20, 20, 200]], requires_grad=True)
    labels = torch.tensor([[0.0, 0, 0, 0], [1, 1, 1, 1]])
    result = value(MULTI_LABEL[name](), logits, labels)
    result.backward()
    assert result.isfinite() and logits.grad.isfinite().all()
    assert (logits.grad[1, :2] < 0).all()  # a wrong answer is pulled back, however sure it is
    half = asymmetric.build(asymmetric.Config(gamma_neg=0.5, gamma_pos=0.5))
    (gradient,) = torch.autograd.grad(value(half, logits, labels), logits)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", MULTI_LABEL)
@pytest.mark.parametrize("unknown", [math.nan, -1.0, -100.0])
def test_unknown_labels_carry_no_loss(name, unknown):
    """The mean is over known labels, and no gradient reaches an unknown one."""
    logits, labels = multi_label_batch()
    hidden = torch.zeros_like(labels, dtype=torch.bool)
    hidden[0], hidden[2, 1], hidden[5, 3] = True, True, True
    loss, masked = MULTI_LABEL[name](), labels.masked_fill(hidden, unknown)
    logits.requires_grad_()
    result = value(loss, logits, masked)
    result.backward()
    assert loss.loss_items({"labels": masked})["loss"] == 24 - 6
    errors = loss.multi_label.errors(logits, labels) if name == "focal" else loss.errors(logits, labels)
    torch.testing.assert_close(result, errors[~hidden].mean())
    assert (logits.grad[hidden] == 0).all() and (logits.grad[~hidden] != 0).any()
    assert value(loss, logits, torch.full_like(labels, unknown)) == 0


@pytest.mark.parametrize("name", MULTI_LABEL)
def test_the_cut_of_a_batch_does_not_matter(name):
    logits, labels = multi_label_batch()
    labels[1:3, :3] = math.nan
    loss, parts = MULTI_LABEL[name](), []
    for cut in (slice(0, 2), slice(2, 3), slice(3, 6)):
        items = loss.loss_items({"labels": labels[cut]})["loss"]
        parts.append(value(loss, logits[cut], labels[cut]) * items)
    torch.testing.assert_close(sum(parts) / loss.loss_items({"labels": labels})["loss"], value(loss, logits, labels))


@pytest.mark.parametrize("name", MULTI_LABEL)
def test_labels_of_another_kind_are_refused(name):
    loss = MULTI_LABEL[name]()
    if name != "focal":
        with pytest.raises(ValueError, match="cross_entropy"):
            value(loss, torch.ones(3, 4), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="logits"):
        value(loss, torch.ones(3, 5), torch.zeros(3, 4))
    with pytest.raises(ValueError, match="logits"):
        loss({"actions": torch.ones(3)}, {"labels": torch.zeros(3, 4)})


@pytest.mark.keys("loss(cross_entropy).label_smoothing")
def test_classes_as_indices_and_as_probabilities():
    logits, _ = multi_label_batch()
    labels = torch.tensor([0, 3, 1, -100, 2, 2])
    loss = cross_entropy.build(cross_entropy.Config(label_smoothing=0.1))
    expected = F.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(value(loss, logits, labels), expected)
    assert loss.loss_items({"labels": labels})["loss"] == 5
    mixed = torch.rand(6, 4, generator=torch.Generator().manual_seed(1)).softmax(1)
    expected = F.cross_entropy(logits, mixed, label_smoothing=0.1)
    torch.testing.assert_close(value(loss, logits, mixed), expected)
    assert loss.loss_items({"labels": mixed})["loss"] == 6


@pytest.mark.keys("loss(focal).gamma")
def test_focal_loss_of_classes():
    logits, _ = multi_label_batch()
    labels = torch.tensor([0, 3, 1, -100, 2, 2])
    kept = labels >= 0
    p = logits[kept].softmax(1).gather(1, labels[kept, None])[:, 0]
    loss = focal.build(focal.Config(gamma=3.0))
    torch.testing.assert_close(value(loss, logits, labels), -((1 - p) ** 3 * p.log()).mean())
    assert loss.loss_items({"labels": labels})["loss"] == 5


@pytest.mark.parametrize("name", ["bce", "asymmetric", "focal", "cross_entropy"])
def test_every_loss_has_the_members_that_the_trainer_reads(name):
    module = importlib.import_module(f"models.losses.{name}")
    loss = module.build(module.Config())
    assert "labels" in loss.targets and dict(loss.loss_weights) == {} and callable(loss.loss_items)


@pytest.mark.keys("loss.name")
@pytest.mark.parametrize("path", sorted((ROOT / "configs/loss").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_file_names_its_loss_and_has_its_defaults(path):
    section = yaml.safe_load(path.read_text())["loss"]
    name = section.pop("name")
    module = component_module("loss", name)
    assert name == path.stem and section == asdict(module.Config())
    assert callable(module.build(module.Config(**section)))


def test_every_loss_has_a_file():
    assert {path.stem for path in (ROOT / "configs/loss").glob("*.yaml")} == set(shipped("loss"))


@pytest.mark.parametrize("name", ["mse", "gaussian_nll"])
def test_losses_of_values_are_those_of_torch(name):
    """Means over known values; an unknown one is NaN."""
    random = torch.Generator().manual_seed(0)
    prediction, log_variance, labels = torch.randn(3, 2, 3, 8, generator=random)
    labels[0, 1, 5:] = math.nan
    known, module = labels.isfinite(), importlib.import_module(f"models.losses.{name}")
    loss = module.build(module.Config())
    outputs = {"prediction": prediction, "log_variance": log_variance}
    expected = F.mse_loss(prediction[known], labels[known])
    if name == "gaussian_nll":
        expected = F.gaussian_nll_loss(prediction[known], labels[known], log_variance[known].exp(), full=True)
    torch.testing.assert_close(loss(outputs, {"labels": labels})["loss"], expected)
    assert loss.loss_items({"labels": labels})["loss"] == known.sum() and "labels" in loss.targets
    with pytest.raises(ValueError, match="log_variance" if name == "gaussian_nll" else "prediction"):
        loss({"prediction": prediction} if name == "gaussian_nll" else {"logits": prediction}, {"labels": labels})


def test_cross_entropy_takes_the_next_ids_of_signals_as_they_are():
    random = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(2, 3, 5, 7, generator=random), torch.randint(0, 7, (2, 3, 5), generator=random)
    labels[0, 1, 2:] = -100
    loss = cross_entropy.build(cross_entropy.Config())
    for shape in ((2, 3, 5), (6, 5)):  # of signals, and of texts over them, which name their channels
        batch = {"labels": labels.view(shape), "channels": torch.zeros(2, 3)}
        found = loss({"logits": logits.view(*shape, 7)}, batch)["loss"]
        torch.testing.assert_close(found, F.cross_entropy(logits.flatten(0, 2), labels.flatten()))
        assert loss.loss_items(batch)["loss"] == 27


def test_focal_loss_of_mixed_classes_is_that_of_classes():
    """Shares of classes are in floating point like independent labels; the data tells which they are."""
    random = torch.Generator().manual_seed(0)
    logits, shares = torch.randn(5, 3, generator=random), torch.rand(5, 3, generator=random).softmax(-1)
    loss = focal.build(focal.Config(gamma=2.0))
    loss.fit({"problem_type": "single_label_classification"})
    error = -(shares * logits.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(value(loss, logits, shares), ((1 - (-error).exp()) ** 2 * error).mean())
    assert loss.loss_items({"labels": shares})["loss"] == 5
