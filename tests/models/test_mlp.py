"""The baseline's own parts, by hand."""

import pytest
import torch


@pytest.mark.keys("model(mlp).loss")
@pytest.mark.parametrize("kind", ["l1", "mse"])
def test_loss_by_hand(build, batch, kind):
    net, data = build("mlp", loss=kind).train(), batch()
    predicted = net(data["state"])["actions"]
    kept = (predicted - data["actions"])[~data["is_pad"]]
    expected = kept.abs().mean() if kind == "l1" else (kept**2).mean()
    output = net(**data)
    torch.testing.assert_close(output["loss"], expected)
    assert set(output["losses"]) == {"action"}


@pytest.mark.keys("model(mlp).hidden_layers")
def test_hidden_layers_and_shapes(build):
    net = build("mlp", hidden_layers=3)
    widths = [tuple(p.shape) for key, p in net.named_parameters() if key.endswith("weight")]
    assert widths == [(16, 6), (16, 16), (16, 16), (15, 16)]


@pytest.mark.slow
def test_images_are_pooled_per_view(build, batch):
    net, data = build("mlp", 2).eval(), batch(2)
    seen = []
    net.trunk.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    net(**data)
    features = net.backbone(data["images"])  # (batch, views, channels, 1, 2)
    expected = torch.cat([data["state"], features[:, 0].mean((2, 3)), features[:, 1].mean((2, 3))], dim=1)
    torch.testing.assert_close(seen[0], expected)
