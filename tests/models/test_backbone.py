"""The image backbone: pixel scaling, frozen norms, pretrained weights."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification

import models.act
from models.backbone import FrozenBatchNorm2d, ImageBackbone
from models.policy import PolicyConfig

SIZES = {"hidden_sizes": [64, 128, 256, 512], "depths": [1, 1, 1, 1], "layer_type": "basic"}


@pytest.fixture
def classifier_folder(tmp_path):
    """A saved classifier of `resnet10`'s shape, as a hub would give it, with random statistics."""
    torch.manual_seed(3)
    net = ResNetForImageClassification(ResNetConfig(**SIZES))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.data.uniform_(0.5, 1.5)
    net.save_pretrained(tmp_path)
    return tmp_path, net.eval()


def test_frozen_norm_equals_batch_norm_in_evaluation():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    nn.init.normal_(norm.weight)
    frozen, features = FrozenBatchNorm2d(norm).train(), torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(frozen(features), norm.eval()(features))
    assert not list(frozen.parameters())


@pytest.mark.slow
def test_pixels_are_scaled_as_imagenet_models_expect():
    backbone, seen = ImageBackbone(PolicyConfig(backbone="resnet10")), []
    backbone.resnet.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = torch.randint(0, 256, (2, 3, 3, 32, 32), dtype=torch.uint8)
    features = backbone(images)
    assert features.shape == (2, 3, 512, 1, 1)
    pixels = images[1, 2].numpy().astype(np.float64) / 255
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = (pixels - mean[:, None, None]) / std[:, None, None]
    np.testing.assert_allclose(seen[0][5].numpy(), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.keys("model(act).backbone_weights", "model(mlp).backbone_weights", "model(regression).backbone_weights")
@pytest.mark.keys("model(diffusion).backbone_weights", "model(flow).backbone_weights")
def test_pretrained_weights_are_loaded_and_their_norms_frozen(build, batch, classifier_folder, tmp_path):
    folder, classifier = classifier_folder
    net = build("act", 1, backbone_weights=str(folder)).train()
    images = batch(1)["images"]
    seen = []
    net.backbone.resnet.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    features = net.backbone(images)[:, 0]
    expected = classifier.resnet(seen[0]).last_hidden_state
    torch.testing.assert_close(features, expected)  # in training mode: the statistics are fixed

    before = {key: value.clone() for key, value in net.backbone.named_buffers()}
    net(**batch(1))["loss"].backward()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    assert all(torch.equal(before[key], value) for key, value in net.backbone.named_buffers())

    # A checkpoint holds the backbone: reloading looks nowhere else.
    net.save_pretrained(tmp_path / "saved")
    for path in folder.glob("*.*"):
        path.unlink()
    loaded = models.act.load(tmp_path / "saved")
    torch.testing.assert_close(loaded.backbone(images), net.backbone(images))


@pytest.mark.slow
def test_random_weights_keep_batch_norm(build, batch):
    net, data = build("act", 1).train(), batch(1)
    before = net.backbone.resnet.embedder.embedder.normalization.running_mean.clone()
    net(**data)
    assert not torch.equal(before, net.backbone.resnet.embedder.embedder.normalization.running_mean)


@pytest.mark.slow
@pytest.mark.keys("model(act).backbone_norm", "model(mlp).backbone_norm", "model(regression).backbone_norm")
@pytest.mark.keys("model(diffusion).backbone_norm", "model(flow).backbone_norm")
@pytest.mark.parametrize(("norm", "frozen"), [("frozen", True), ("batch", False), ("auto", False)])
def test_norm_key(norm, frozen):
    backbone = ImageBackbone(PolicyConfig(backbone="resnet10", backbone_norm=norm))
    assert any(isinstance(module, FrozenBatchNorm2d) for module in backbone.modules()) == frozen
    assert any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules()) != frozen


@pytest.mark.slow
def test_group_norms_have_groups_of_16_channels():
    backbone = ImageBackbone(PolicyConfig(backbone="resnet10", backbone_norm="group"))
    norms = [module for module in backbone.modules() if isinstance(module, nn.GroupNorm)]
    assert {(norm.num_groups, norm.num_channels) for norm in norms} == {(n // 16, n) for n in (64, 128, 256, 512)}
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())


@pytest.mark.slow
@pytest.mark.parametrize(("keys", "place"), [({"backbone": "resnet18"}, ""), ({}, "nowhere")])
def test_weights_that_do_not_fit_or_exist_are_refused(build, classifier_folder, keys, place):
    folder, _ = classifier_folder
    with pytest.raises(ValueError, match=f"backbone_weights: {folder / place}"):
        build("act", 1, backbone_weights=str(folder / place), **keys)


@pytest.mark.keys("model(act).backbone", "model(mlp).backbone", "model(regression).backbone")
@pytest.mark.keys("model(diffusion).backbone", "model(flow).backbone")
@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_architectures_have_the_published_sizes(name):
    """Millions of parameters in torchvision's tables, which count a 1000-class head."""
    published = {"resnet18": 11.69, "resnet34": 21.80, "resnet50": 25.56}[name]
    with torch.device("meta"):
        backbone = ImageBackbone(PolicyConfig(backbone=name))
    head = 1000 * (backbone.out_channels + 1)
    count = sum(p.numel() for p in backbone.parameters())
    assert (count + head) / 1e6 == pytest.approx(published, abs=0.01)


def test_no_weights_are_fetched_without_images(build):
    build("act", 0, backbone_weights="nowhere/at-all")
