"""Every kind of image classifier of transformers that the workload is for: losses, saving, channels."""

import numpy as np
import pytest
import torch
from adapting import Process
from image_networks import NETWORKS, new_network

import models.auto
from models.auto import load


def batch_of(labels, channels=3):
    generator = torch.Generator().manual_seed(1)
    return {"pixel_values": torch.randn(4, channels, 32, 32, generator=generator), "labels": torch.tensor(labels)}


MANY = [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]]


@pytest.mark.slow
@pytest.mark.parametrize("kind", NETWORKS)
def test_the_losses_of_a_new_network_by_hand(kind):
    """Binary cross entropy of several labels, cross entropy of one class each, in float64 from the logits."""
    many = new_network(kind, problem_type="multi_label_classification").eval()
    with torch.no_grad():
        output = many(**batch_of(MANY))
    logits, targets = output.logits.double().numpy(), np.array(MANY)
    assert logits.std() > 1e-3
    probabilities = 1 / (1 + np.exp(-logits))
    errors = -np.where(targets == 1, np.log(probabilities), np.log(1 - probabilities))
    assert float(output.loss) == pytest.approx(errors.mean(), rel=1e-5)
    one = new_network(kind, problem_type="single_label_classification").eval()
    with torch.no_grad():
        output = one(**batch_of([2, 0, 1, 2]))
    logits = output.logits.double().numpy()
    logits -= logits.max(1, keepdims=True)
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert float(output.loss) == pytest.approx(-logs[np.arange(4), [2, 0, 1, 2]].mean(), rel=1e-5)


@torch.no_grad()
def logits_of(model, channels=3):
    return model.eval()(pixel_values=batch_of(MANY, channels)["pixel_values"]).logits


@pytest.mark.slow
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_saved_network_is_the_same_bit_for_bit(kind, tmp_path):
    model = new_network(kind, problem_type="multi_label_classification")
    model.train()(**batch_of(MANY))  # running statistics
    model.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert again.config.id2label == {0: "a", 1: "b", 2: "c"} and not again.training
    state, stored = model.state_dict(), again.state_dict()
    assert state.keys() == stored.keys() and all(torch.equal(state[name], stored[name]) for name in state)
    torch.testing.assert_close(logits_of(again), logits_of(model))  # memory's alignment chooses convolution kernels


@pytest.mark.slow
@pytest.mark.keys("model(auto).num_channels")
@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("channels", [1, 4])
def test_other_numbers_of_channels_of_new_and_of_pretrained_weights(kind, channels, tmp_path):
    """Pretrained weights see a gray image as in three equal channels, and as yet nothing of a fourth."""
    new = new_network(kind, num_channels=channels)
    assert logits_of(new, channels).shape == (4, 3)
    pretrained = new_network(kind)
    pretrained.save_pretrained(tmp_path)
    model = new_network(kind, path=str(tmp_path), num_channels=channels)
    assert len(model.notes) == 1 and f"3 channels, for {channels}" in model.notes[0]
    own, theirs = dict(model.named_parameters()), dict(pretrained.named_parameters())
    (changed,) = [name for name, weight in own.items() if weight.shape != theirs[name].shape]
    if channels == 1:
        assert torch.allclose(own[changed], theirs[changed].sum(1, keepdim=True))
    else:
        assert torch.equal(own[changed][:, :3], theirs[changed]) and not own[changed][:, 3].any()
    assert changed in model.new_weights  # an adapter has to save it: its base has other ones
    if kind != "bit":  # which standardizes the weights of a convolution
        pixels = batch_of(MANY, channels)["pixel_values"]
        with torch.no_grad():
            expected = pretrained.eval()(pixel_values=pixels[:, :3].expand(-1, 3, -1, -1)).logits
        torch.testing.assert_close(logits_of(model, channels), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.keys("model(auto).image_size")
@pytest.mark.parametrize("kind", ["convnextv2", "resnet", "dinov2", "swin", "focalnet", "efficientnet", "vit", "deit"])
def test_images_of_another_size_than_those_of_pretrained_weights(kind, tmp_path):
    """Convolutions and interpolated positions take them, with all weights; a table of positions does not."""
    pretrained = new_network(kind)
    pretrained.save_pretrained(tmp_path)
    if kind in ("vit", "deit"):
        with pytest.raises(ValueError, match="image_size: 64`.*64 pixels"):
            new_network(kind, path=str(tmp_path), image_size=64)
        return
    model = new_network(kind, path=str(tmp_path), image_size=64)
    assert model.new_weights == set() and model(pixel_values=torch.zeros(2, 3, 64, 64)).logits.shape == (2, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"model_type": "bit", "embedding_size": 32, "hidden_sizes": [32, 64], "depths": [1, 1]}, "num_groups"),
        ({"model_type": "vit", "patch_size": 64, "num_hidden_layers": 1}, "image_size: 32"),
        ({"model_type": "mobilevitv2"}, "image_size: 32"),
    ],
)
def test_a_network_that_the_images_do_not_fit(config, word):
    settings = models.auto.Config(task="image_classification", config=config, num_labels=3, image_size=32)
    with pytest.raises(ValueError, match=word) as raised:
        models.auto.build(settings, Process())
    assert "\n" not in str(raised.value)
