"""ACT's own parts: losses by hand, the CVAE, padding, cameras, gradient checkpointing."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from models.act import Config
from models.act.network import gaussian_kl
from models.layers import FeedForward


def test_kl_equals_torch_distributions():
    torch.manual_seed(0)
    mean, log_variance = torch.randn(3, 4), torch.randn(3, 4)
    posterior, prior = Normal(mean, (log_variance / 2).exp()), Normal(torch.zeros(3, 4), torch.ones(3, 4))
    expected = kl_divergence(posterior, prior).sum(1).mean()
    torch.testing.assert_close(gaussian_kl(mean, log_variance), expected)
    assert gaussian_kl(torch.zeros(2, 4), torch.zeros(2, 4)).item() == 0


def test_posterior_starts_as_the_prior(build, batch):
    assert build().train()(**batch())["losses"]["kl"].item() == 0


@pytest.mark.keys("model(act).kl_weight")
def test_losses_by_hand(build, batch):
    net, data = build(kl_weight=3.0).train(), batch()
    torch.nn.init.normal_(net.cvae_encoder.posterior.weight, std=0.2)
    torch.manual_seed(5)
    output = net(**data)

    torch.manual_seed(5)
    mean, log_variance = net.cvae_encoder(data["state"], data["actions"], data["is_pad"])
    noise = torch.randn(2, 4)
    predicted = net.predict(mean + noise * torch.exp(0.5 * log_variance), data["state"], None)
    errors = [
        abs(predicted[sample, step, dim] - data["actions"][sample, step, dim]).item()
        for sample in range(2)
        for step in range(5 if sample == 0 else 3)  # the second sample's last two steps are padding
        for dim in range(3)
    ]
    kl = 0.0
    for sample in range(2):
        for m, v in zip(mean[sample].tolist(), log_variance[sample].exp().tolist(), strict=True):
            kl += 0.5 * (m**2 + v - 1 - torch.tensor(v).log().item()) / 2

    assert output["losses"]["action"].item() == pytest.approx(sum(errors) / 24, rel=1e-5)
    assert output["losses"]["kl"].item() == pytest.approx(kl, rel=1e-4)
    assert output["loss"].item() == pytest.approx(sum(errors) / 24 + 3 * kl, rel=1e-4)


def test_evaluation_loss_is_that_of_z_zero(build, batch):
    net, data = build().eval(), batch()
    output = net(**data)
    predicted = net.predict(torch.zeros(2, 4), data["state"], None)
    expected = (predicted - data["actions"]).abs()[~data["is_pad"]].mean()
    torch.testing.assert_close(output["loss"], expected)
    assert set(output["losses"]) == {"action"}


def test_padded_actions_change_neither_loss_nor_gradient(build, batch):
    net = build().train()
    torch.nn.init.normal_(net.cvae_encoder.posterior.weight, std=0.2)

    def loss_and_gradients(fill: float):
        data = batch()
        data["actions"][data["is_pad"]] = fill
        net.zero_grad()
        torch.manual_seed(0)
        loss = net(**data)["loss"]
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in net.parameters())]

    for left, right in zip(loss_and_gradients(0.0), loss_and_gradients(1000.0), strict=True):
        assert torch.equal(left, right)


def test_actions_reach_the_prediction_in_training_through_z(build, batch):
    net, data = build().train(), batch()
    data["actions"].requires_grad_()
    torch.nn.init.normal_(net.cvae_encoder.posterior.weight)
    mean, log_variance = net.cvae_encoder(data["state"], data["actions"], data["is_pad"])
    (mean.sum() + log_variance.sum()).backward()
    reached = data["actions"].grad.abs().sum(-1) > 0
    assert torch.equal(reached, ~data["is_pad"])


@pytest.mark.keys("model(act).use_cvae")
def test_without_cvae_there_is_no_kl(build, batch):
    net = build(use_cvae=False).train()
    output = net(**batch())
    assert set(output["losses"]) == {"action"} and torch.equal(output["loss"], output["losses"]["action"])
    assert not any(key.startswith("cvae_encoder") for key in net.state_dict())


@pytest.mark.slow
def test_every_camera_counts_and_views_start_alike(build, batch):
    net, data = build("act", 2).eval(), batch(2)
    expected = net(**data)["actions"]
    torch.testing.assert_close(net(**{**data, "images": data["images"].flip(1)})["actions"], expected)
    for camera in range(2):
        images = data["images"].clone()
        images[:, camera] = 0
        assert not torch.allclose(net(**{**data, "images": images})["actions"], expected, atol=1e-5)
    torch.nn.init.normal_(net.view_positions.weight)
    told_apart = net(**{**data, "images": data["images"].flip(1)})["actions"]
    assert not torch.allclose(told_apart, net(**data)["actions"], atol=1e-5)


@pytest.mark.slow
def test_image_tokens_keep_their_place(build, batch):
    net, data = build("act", 1).eval(), batch(1)
    expected = net(**data)["actions"]
    turned = net(**{**data, "images": data["images"].flip(-1)})["actions"]
    assert not torch.allclose(turned, expected, atol=1e-5)


@pytest.mark.keys("model(act).decoder_layers")
def test_every_decoder_layer_is_used(build, batch):
    net = build(decoder_layers=3).train()
    net(**batch())["loss"].backward()
    assert len(net.decoder.layers) == 3
    for layer in net.decoder.layers:
        assert layer.feedforward[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("pre_norm", [False, True])
def test_one_row_for_the_batch_changes_nothing(build, batch, pre_norm):
    """Without dropout the decoder starts from one row for all samples, with dropout from one row each."""
    net, data = build(decoder_layers=2, pre_norm=pre_norm).train(), batch()
    torch.manual_seed(0)
    shared = net(**data)["loss"]
    net.decoder.dropout = 1e-9  # makes the rows separate; the layers themselves still drop nothing
    torch.manual_seed(0)
    torch.testing.assert_close(net(**data)["loss"], shared)


@pytest.mark.slow
def test_gradient_checkpointing_recomputes_every_layer_and_keeps_gradients(build, batch):
    net, data = build(decoder_layers=2).train(), batch()
    calls: list[str] = []
    for module in net.modules():
        if isinstance(module, FeedForward):
            module.register_forward_hook(lambda *_: calls.append("feedforward"))

    def gradients():
        calls.clear()
        net.zero_grad()
        torch.manual_seed(0)
        net(**data)["loss"].backward()
        return [p.grad.clone() for p in net.parameters()]

    plain, layers = gradients(), len(calls)
    assert layers == 2 + 2 + 2  # CVAE encoder, encoder, decoder
    net.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    checkpointed = gradients()
    assert len(calls) == 2 * layers
    for left, right in zip(plain, checkpointed, strict=True):
        assert torch.equal(left, right)


def test_defaults_are_the_papers():
    config = Config()
    assert (config.hidden_dim, config.num_heads, config.feedforward_dim) == (512, 8, 3200)
    assert (config.encoder_layers, config.cvae_layers, config.latent_dim) == (4, 4, 32)
    assert (config.kl_weight, config.dropout, config.pre_norm, config.use_cvae) == (10.0, 0.1, False, True)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"hidden_dim": 30, "num_heads": 8}, "hidden_dim: 30 is not divisible by model.num_heads: 8"),
        ({"hidden_dim": 30, "num_heads": 2}, "hidden_dim: 30 is not divisible by 4"),
    ],
)
def test_config_checks_its_widths(keys, message):
    with pytest.raises(ValueError, match=message):
        Config(**keys)


@pytest.mark.keys("model(act).env_state_dim")
def test_the_environment_s_state_is_a_token_that_the_cvae_does_not_read(build, batch):
    net, data = build("act", env_state_dim=2), batch()
    assert net.env_state_projection.in_features == 2 and net.state_projection.in_features == 4
    assert net.token_positions.num_embeddings == 3
    seen = []
    net.cvae_encoder.state_projection.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    net.train()(**data)
    assert torch.equal(seen[0], data["state"][:, :4])
    before, changed = net.eval()(data["state"])["actions"], data["state"].clone()
    changed[:, 5] += 1
    assert not torch.allclose(net(changed)["actions"], before)
    with pytest.raises(ValueError, match="env_state_dim: 6"):
        build("act", env_state_dim=6)
