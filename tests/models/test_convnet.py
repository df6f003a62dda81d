"""The convolutional network, against the same layers written out and torch's losses."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

import models.convnet

NAMES = ["flood", "road", "rubble", "debris"]
DIMS = {"num_labels": 4, "labels": NAMES, "image_size": 24, "num_channels": 3}
MULTI, SINGLE = "multi_label_classification", "single_label_classification"


def made(problem_type=MULTI, **keys):
    torch.manual_seed(0)
    dims = {**DIMS, "problem_type": problem_type, "widths": [4, 8]}
    return models.convnet.build(models.convnet.Config(**{**dims, **keys}), SimpleNamespace())


def batch(problem_type=MULTI, samples=6):
    random = torch.Generator().manual_seed(1)
    pixels = torch.randn(samples, 3, 24, 24, generator=random)
    if problem_type == MULTI:
        return {"pixel_values": pixels, "labels": (torch.rand(samples, 4, generator=random) < 0.4).float()}
    return {"pixel_values": pixels, "labels": torch.randint(0, 4, (samples,), generator=random)}


@pytest.mark.keys(
    "model(convnet).widths",
    "model(convnet).stem_stride",
    "model(convnet).norm",
    "model(convnet).pooling",
    "model(convnet).num_channels",
    "model(convnet).num_labels",
)
@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize(("stem_stride", "pooling"), [(1, "mean"), (2, "mean"), (2, "max")])
def test_the_network_is_its_layers(norm, stem_stride, pooling):
    keys = {"stem_stride": stem_stride, "pooling": pooling, "num_channels": 3, "num_labels": 4}
    net = made(norm=norm, widths=[4, 8], **keys).eval()
    state, pixels = net.state_dict(), batch()["pixel_values"]
    features = pixels
    for index, stride in enumerate([stem_stride, 1]):
        features = F.conv2d(features, state[f"stages.{index}.0.weight"], stride=stride, padding=1)
        scale = state[f"stages.{index}.1.weight"], state[f"stages.{index}.1.bias"]
        if norm == "batch":
            features = F.batch_norm(features, torch.zeros(features.shape[1]), torch.ones(features.shape[1]), *scale)
        else:
            features = F.group_norm(features, features.shape[1] // 4, *scale)
        features = F.max_pool2d(features.relu(), 2)
    places = features.flatten(2)
    pooled = places.mean(2) if pooling == "mean" else places.max(2).values
    expected = pooled @ state["head.weight"].T + state["head.bias"]
    assert expected.shape == (6, 4)
    torch.testing.assert_close(net(pixels)["logits"], expected)


def test_number_of_parameters_at_the_defaults():
    """As in the package's docstring."""
    dims = {"num_labels": 10, "problem_type": MULTI, "image_size": 56, "num_channels": 1}
    net = models.convnet.build(models.convnet.Config(**dims), SimpleNamespace())
    assert sum(parameter.numel() for parameter in net.parameters()) == 24_058
    assert "24,058" in models.convnet.__doc__


@pytest.mark.keys("model(convnet).problem_type")
@pytest.mark.parametrize("problem_type", [MULTI, SINGLE])
def test_its_loss_is_that_of_torch(problem_type):
    net, data = made(problem_type=problem_type).train(), batch(problem_type)
    output = net(**data)
    reference = F.binary_cross_entropy_with_logits if problem_type == MULTI else F.cross_entropy
    torch.testing.assert_close(output["loss"], reference(output["logits"], data["labels"]))
    assert net.loss_items(data)["loss"] == (24 if problem_type == MULTI else 6)
    assert set(net(data["pixel_values"])) == {"logits"}
    output["loss"].backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.parameters())


def test_unknown_labels_carry_no_loss():
    net, data = made().eval(), batch()
    known = torch.rand(6, 4, generator=torch.Generator().manual_seed(2)) < 0.7
    logits = net(data["pixel_values"])["logits"]
    expected = F.binary_cross_entropy_with_logits(logits[known], data["labels"][known])
    data["labels"][~known] = math.nan
    torch.testing.assert_close(net(**data)["loss"], expected)
    assert net.loss_items(data)["loss"] == known.sum()


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_scores_do_not_depend_on_the_other_images_of_a_batch(norm):
    net, pixels = made(norm=norm), batch()["pixel_values"]
    for _ in range(3):
        net.train()(pixels)
    net.eval()
    together = net(pixels)["logits"]
    torch.testing.assert_close(torch.cat([net(part)["logits"] for part in pixels.split(1)]), together)


@pytest.mark.keys("model(convnet).norm")
def test_with_group_norm_the_cut_of_a_batch_does_not_matter():
    net, data = made(norm="group").train(), batch()
    whole = torch.autograd.grad(net(**data)["loss"], list(net.parameters()))
    cut = [torch.zeros_like(parameter) for parameter in net.parameters()]
    for part in (slice(0, 2), slice(2, 6)):
        share = {name: value[part] for name, value in data.items()}
        loss = net(**share)["loss"] * net.loss_items(share)["loss"] / 24
        cut = [total + more for total, more in zip(cut, torch.autograd.grad(loss, list(net.parameters())), strict=True)]
    torch.testing.assert_close(cut, list(whole))


@pytest.mark.keys("model(convnet).labels")
@pytest.mark.parametrize("problem_type", [MULTI, SINGLE])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_saved_and_loaded_it_is_the_same(tmp_path, problem_type, norm):
    net, data = made(problem_type=problem_type, norm=norm, labels=NAMES), batch(problem_type)
    net.train()(**data)  # moves the statistics of batch norms
    net.eval().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["id2label"] == {str(index): name for index, name in enumerate(NAMES)}
    assert saved["label2id"] == {name: index for index, name in enumerate(NAMES)}
    assert (saved["model_type"], saved["problem_type"], saved["image_size"]) == ("convnet", problem_type, 24)
    again = models.convnet.load(tmp_path)
    assert not again.training and again.config.num_labels == 4 and again.config.norm == norm
    for name in ("logits", "loss"):
        assert torch.equal(again(**data)[name], net(**data)[name])


@pytest.mark.keys("model(convnet).image_size")
@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"image_size": 7}, ["7", "8", "stem_stride"]),
        ({"widths": []}, ["widths"]),
        ({"widths": [6], "norm": "group"}, ["[6]", "group"]),
        ({"num_channels": None}, ["num_channels"]),
        ({"labels": ["a"]}, ["1", "4"]),
    ],
)
def test_sizes_that_do_not_fit_are_refused(keys, words):
    with pytest.raises(ValueError) as error:
        made(**keys)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


@pytest.mark.slow
def test_it_learns_where_a_bright_spot_is():
    """Each label is a colour channel with a bright spot somewhere in it."""
    net, random = made(num_labels=3, labels=None, widths=[8, 16]), torch.Generator().manual_seed(3)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.02)
    for _ in range(100):
        data = spots(random, 32)
        optimizer.zero_grad()
        net.train()(**data)["loss"].backward()
        optimizer.step()
    data = spots(random, 200)
    predicted = net.eval()(data["pixel_values"])["logits"] > 0
    assert (predicted == data["labels"].bool()).float().mean() > 0.95


def spots(random, samples):
    pixels = 0.3 * torch.randn(samples, 3, 24, 24, generator=random)
    labels = (torch.rand(samples, 3, generator=random) < 0.4).float()
    for sample, channel in labels.nonzero().tolist():
        top, left = torch.randint(0, 20, (2,), generator=random).tolist()
        pixels[sample, channel, top : top + 4, left : left + 4] += 3
    return {"pixel_values": pixels, "labels": labels}
