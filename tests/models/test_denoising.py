"""Diffusion, flow and regression policies against exact networks, diffusers' own loop and hand calculations."""

import math

import pytest
import torch
from scipy import stats
from torch import nn

from models.chunk_networks import UNet
from models.observation import SpatialSoftmax, crop

every_sampler = pytest.mark.parametrize("name", ["diffusion", "flow"])
every_policy = pytest.mark.parametrize("name", ["diffusion", "flow", "regression"])
every_network = pytest.mark.parametrize("network", ["mlp", "transformer", "unet"])


class Recorder(nn.Module):
    """Stands for a network: records its arguments and answers with `answer(chunk, time)`."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.calls = answer, []
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, chunk, time, condition):
        self.calls.append((chunk, time, condition))
        return self.answer(chunk, time)


@pytest.mark.slow
@every_policy
@every_network
def test_a_sample_does_not_depend_on_its_batch(build, batch, name, network):
    keys = {"unet_channels": [16, 16], "group_norm_groups": 4, "chunk_size": 6} if network == "unet" else {}
    net, data = build(name, network=network, **keys).eval(), batch(size=4)
    chunks = net(data["state"])["actions"]
    torch.testing.assert_close(chunks[2:3], net(data["state"][2:3])["actions"])
    assert not torch.allclose(chunks[0], chunks[1])


@pytest.mark.slow
@every_policy
def test_the_loss_of_an_evaluation_is_that_of_its_samples(build, batch, name):
    net, data = build(name).eval(), batch(size=4)
    data["is_pad"][:] = False
    whole = net(**data)["loss"]
    parts = [net(**{key: value[i : i + 1] for key, value in data.items()})["loss"] for i in range(4)]
    torch.testing.assert_close(whole, torch.stack(parts).mean())


@pytest.mark.slow
@every_sampler
def test_chunks_of_an_episode_differ_and_episodes_repeat(build, batch, name):
    net, data = build(name, n_action_steps=1).eval(), batch()
    state = {"state": data["state"][:1]}
    first, second = net.select_action(state), net.select_action(state)
    assert not torch.equal(first, second)
    net.reset()
    assert torch.equal(net.select_action(state), first)


@pytest.mark.keys("model(flow).sampling_steps")
@pytest.mark.parametrize("steps", [1, 7])
def test_an_exact_velocity_leads_to_the_actions(build, batch, steps):
    """On the straight line between noise and actions, the velocity at (x, t) is (x - actions) / t."""
    net, data = build("flow", sampling_steps=steps), batch()
    actions = data["actions"][:1]
    net.network = Recorder(lambda chunk, time: (chunk - actions) / (time[:, None, None] / 1000))
    output = net.eval()(data["state"][:1])
    torch.testing.assert_close(output["actions"], actions)
    assert len(net.network.calls) == steps
    loss = net.train()(data["state"][:1], actions)["loss"]
    assert loss < 1e-6


@pytest.mark.keys("model(flow).guidance_weight")
@pytest.mark.parametrize("past_actions", [0, 1])
def test_guidance_by_hand_on_a_linear_velocity(build, past_actions):
    """Velocity k · x: the actions estimated from x at time t are (1 - t·k) · x, whose derivative is 1 - t·k."""
    slope, weight, delay, steps = 0.3, 2.0, 1, 4
    keys = {"inference_delay": delay, "n_action_steps": 2, "sampling_steps": steps, "past_actions": past_actions}
    net = build("flow", guidance_weight=weight, **keys).eval()
    net.network = Recorder(lambda chunk, time: slope * chunk)
    net.select_action({"state": torch.zeros(1, 6)})
    net.select_action({"state": torch.zeros(1, 6)})
    previous = net._plan.plan.clone()
    rest = len(previous)
    assert rest == 5 - past_actions - 2
    shares = [(rest - i) / (rest - delay + 1) for i in range(rest)]
    mask = [1.0 if i < delay else s * (math.exp(s) - 1) / (math.e - 1) for i, s in enumerate(shares)]
    generator = torch.Generator()
    generator.set_state(net._generator.get_state())
    x = torch.randn(1, 5, 3, generator=generator)[0]
    target, mask_of_all = torch.zeros(5, 3), torch.zeros(5, 1)
    target[past_actions : past_actions + rest] = previous
    mask_of_all[past_actions : past_actions + rest, 0] = torch.tensor(mask)
    for step in range(steps):
        t = 1 - step / steps
        tau = 1 - t  # the paper's time
        limit = math.inf if tau == 0 else (1 - tau) / tau * (tau**2 + (1 - tau) ** 2) / (1 - tau) ** 2
        correction = (1 - t * slope) * mask_of_all * (target - (1 - t * slope) * x)
        x = x - (slope * x - min(weight, limit) * correction) / steps
    torch.testing.assert_close(net.predict_chunk({"state": torch.zeros(1, 6)})[0], x)
    with pytest.raises(ValueError, match="guidance_weight: 2.0.*inference_delay"):
        build("flow", guidance_weight=weight)


@pytest.mark.slow
def test_guided_chunks_have_less_jerk_at_their_borders(build):
    """The exact velocity where all chunks are constant, at a normal height: without guidance, each has its own."""

    def velocity(chunk, time):
        t = time[:, None, None] / 1000
        precision = 1 / 0.5**2 + (1 - t) ** 2 * chunk.shape[1] / t**2
        return (chunk - (1 - t) / t**2 * chunk.sum(dim=1, keepdim=True) / precision) / t

    def jerk(**keys):
        net = build("flow", chunk_size=12, n_action_steps=4, inference_delay=1, **keys).eval()
        net.network = Recorder(velocity)
        actions = torch.stack([net.select_action({"state": torch.zeros(1, 6)}) for _ in range(60)])
        assert actions.std() > 0.1, "chunks of all heights"
        return torch.diff(actions, n=3, dim=0).abs().max()

    assert jerk(guidance_weight=5.0) < jerk() / 2


@pytest.mark.keys("model(flow).time_alpha")
@pytest.mark.parametrize("alpha", [1.0, 1.5, 3.0])
def test_times_are_beta_distributed(build, alpha):
    net = build("flow", time_alpha=alpha).train()
    net.network = Recorder(lambda chunk, time: torch.zeros_like(chunk))
    net(torch.zeros(4000, 6), torch.zeros(4000, 5, 3))
    times = net.network.calls[0][1] / 1000
    assert stats.kstest((times - 0.001) / 0.999, stats.beta(alpha, 1).cdf).pvalue > 0.01


def test_the_flow_loss_by_hand(build, batch, monkeypatch):
    net, data = build("flow").train(), batch()
    noise = torch.full_like(data["actions"], 0.5)
    monkeypatch.setattr(net, "draw", lambda actions: (noise, torch.full((2,), 0.4)))
    net.network = Recorder(lambda chunk, time: torch.zeros_like(chunk))
    expected = ((noise - data["actions"]) ** 2)[~data["is_pad"]].mean()
    torch.testing.assert_close(net(**data)["loss"], expected)


@pytest.mark.slow
@pytest.mark.keys(
    "model(diffusion).sampler",
    "model(diffusion).sampling_steps",
    "model(diffusion).train_timesteps",
    "model(diffusion).beta_schedule",
    "model(diffusion).prediction_type",
    "model(diffusion).clip_sample",
)
@pytest.mark.parametrize(
    "keys",
    [
        {"sampler": "ddim", "sampling_steps": 5},
        {"sampler": "ddpm", "sampling_steps": 20, "train_timesteps": 20},
        {"sampler": "ddim", "beta_schedule": "linear", "train_timesteps": 50},
        {"sampler": "ddim", "prediction_type": "v_prediction", "clip_sample": False},
        {"sampler": "ddpm", "prediction_type": "sample", "sampling_steps": 4},
    ],
)
def test_sampling_is_that_of_diffusers(build, batch, keys):
    """The loop of diffusers' documentation, with its schedulers built apart."""
    import diffusers

    net, state = build("diffusion", **keys).eval(), batch()["state"][:1]
    given = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "epsilon", "clip_sample": True, **keys}
    steps, sampler = given.pop("sampling_steps", 10), given.pop("sampler")
    kind = {"ddim": diffusers.DDIMScheduler, "ddpm": diffusers.DDPMScheduler}[sampler]
    scheduler = kind(num_train_timesteps=given.pop("train_timesteps", 100), **given)
    scheduler.set_timesteps(steps)
    chunk = torch.randn(1, 5, 3, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            predicted = net.network(chunk, timestep[None], state)
            chunk = scheduler.step(predicted, timestep, chunk, generator=generator).prev_sample
    torch.testing.assert_close(net(state)["actions"], chunk)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_a_network_that_knows_the_actions_has_no_loss(build, batch, kind):
    net, data = build("diffusion", prediction_type=kind).train(), batch()
    actions = data["actions"].clamp(-1, 1)
    kept = net.scheduler.alphas_cumprod

    def answer(chunk, time):
        share = kept[time][:, None, None]
        noise = (chunk - share.sqrt() * actions) / (1 - share).sqrt()
        velocity = share.sqrt() * noise - (1 - share).sqrt() * actions
        return {"epsilon": noise, "sample": actions, "v_prediction": velocity}[kind]

    net.network = Recorder(answer)
    assert net(data["state"], actions)["loss"] < 1e-6
    sampled = net.eval()(data["state"])["actions"]
    torch.testing.assert_close(sampled, actions, atol=1e-4, rtol=0)


@pytest.mark.keys("model(regression).loss")
@pytest.mark.parametrize("kind", ["l1", "mse"])
def test_the_regression_loss_by_hand(build, batch, kind):
    net, data = build("regression", loss=kind).train(), batch()
    difference = (net.network(torch.zeros(2, 5, 3), torch.zeros(2), data["state"]) - data["actions"])[~data["is_pad"]]
    expected = difference.abs().mean() if kind == "l1" else (difference**2).mean()
    torch.testing.assert_close(net(**data)["loss"], expected)


@pytest.mark.slow
@every_sampler
def test_overfits_a_tiny_batch(build, batch, name):
    keys = {"clip_sample": False} if name == "diffusion" else {}
    net = build(name, network="mlp", hidden_dim=64, time_dim=16, **keys).train()
    data = {key: value.repeat_interleave(16, dim=0) for key, value in batch(size=3).items()}
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for _ in range(600):
        optimizer.zero_grad()
        net(**data)["loss"].backward()
        optimizer.step()
    error = (net.eval()(data["state"])["actions"] - data["actions"]).abs()[~data["is_pad"]].mean()
    assert error < 0.25  # always predicting 0 would have 0.8


@pytest.mark.slow
@pytest.mark.keys("model(diffusion).image_pooling", "model(flow).image_pooling", "model(regression).image_pooling")
@pytest.mark.keys("model(diffusion).keypoints", "model(flow).keypoints", "model(regression).keypoints")
@every_policy
def test_pooling_of_images(build, batch, name):
    keypoints = build(name, 2, image_pooling="spatial_softmax", keypoints=3)
    mean, data = build(name, 2, image_pooling="mean"), batch(2)
    assert keypoints.observation.width == 6 + 2 * 2 * 3
    state, images = data["state"], data["images"]
    features = mean.eval().observation.backbone(images)
    expected = torch.cat((state, features[:, 0].mean((2, 3)), features[:, 1].mean((2, 3))), dim=1)
    torch.testing.assert_close(mean.observation(state, images), expected)


def test_keypoints_are_where_the_features_are():
    pooling = SpatialSoftmax(2, 2)
    with torch.no_grad():
        pooling.score.weight.copy_(torch.eye(2)[..., None, None])
        pooling.score.bias.zero_()
    features = torch.full((1, 2, 3, 5), -50.0)
    features[0, 0, 0, 4] = features[0, 1, 2, 1] = 50.0  # right above; below, second column
    torch.testing.assert_close(pooling(features), torch.tensor([[1.0, -1.0, -0.5, 1.0]]))


@pytest.mark.slow
@pytest.mark.keys("model(diffusion).crop_size", "model(flow).crop_size", "model(regression).crop_size")
@every_policy
def test_crops_are_random_in_training_only(build, batch, name):
    net, data = build(name, 1, crop_size=[32, 40]), batch(1)
    shapes = []
    net.observation.backbone.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0]))
    net.train()(**data)
    net.eval()(data["state"], images=data["images"])
    assert torch.equal(shapes[1], data["images"][..., :, 12:52])
    assert shapes[0].shape == shapes[1].shape == (2, 1, 3, 32, 40)


@pytest.mark.parametrize(("free", "corner"), [(1, 0), (2, 1), (3, 2), (5, 2)])
def test_the_centre_is_rounded_to_even(free, corner):
    rows = torch.arange(4.0 + free)[None, None, None, :, None].expand(1, 1, 1, -1, 4)
    assert crop(rows, 4, 4, random=False)[0, 0, 0, 0, 0] == corner


def test_crops_cover_every_place():
    images = torch.arange(16.0).view(1, 1, 1, 4, 4).expand(400, -1, -1, -1, -1)
    corners = crop(images, 3, 2, random=True)[:, 0, 0, 0, 0]
    assert set(corners.tolist()) == {0.0, 1.0, 2.0, 4.0, 5.0, 6.0}


@pytest.mark.keys("model(diffusion).network", "model(flow).network", "model(regression).network")
@pytest.mark.keys("model(diffusion).num_layers", "model(flow).num_layers", "model(regression).num_layers")
@pytest.mark.keys("model(diffusion).hidden_dim", "model(flow).hidden_dim", "model(regression).hidden_dim")
@pytest.mark.keys("model(diffusion).time_dim", "model(flow).time_dim", "model(regression).time_dim")
@every_policy
def test_sizes_of_the_networks(build, name):
    perceptron = build(name, network="mlp", hidden_dim=24, num_layers=3, time_dim=10).network
    widths = [tuple(layer.weight.shape) for layer in perceptron.layers if isinstance(layer, nn.Linear)]
    assert widths == [(24, 15 + 10 + 6), (24, 24), (24, 24), (15, 24)]
    transformer = build(name, network="transformer", num_layers=3, hidden_dim=8, num_heads=2).network
    assert len(transformer.layers) == 3 and transformer.action.weight.shape == (8, 3)


@pytest.mark.keys("model(diffusion).film_scale", "model(flow).film_scale", "model(regression).film_scale")
@pytest.mark.keys("model(diffusion).time_encoding", "model(flow).time_encoding", "model(regression).time_encoding")
@every_policy
def test_modulation_and_encoding_of_the_time(build, name):
    keys = {"network": "unet", "unet_channels": [8, 8], "group_norm_groups": 2, "chunk_size": 4, "time_dim": 8}
    net = build(name, film_scale=False, time_encoding="halves", **keys).network
    block, chunk, condition = net.middle[0], torch.randn(2, 8, 4), torch.randn(2, 6 + 8)
    assert (
        block.modulation[1].out_features == 8 and build(name, **keys).network.middle[0].modulation[1].out_features == 16
    )
    shift = block.modulation(condition)[..., None]
    torch.testing.assert_close(block(chunk, condition), block.second(block.first(chunk) + shift) + chunk)
    seen = []
    net.time[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    net.time(torch.tensor([3.0]))
    angles = 3 * torch.tensor([1, 10000 ** (-1 / 3), 10000 ** (-2 / 3), 1e-4])
    torch.testing.assert_close(seen[0], torch.cat((angles.sin(), angles.cos()))[None])
    with pytest.raises(ValueError, match="time_dim: 2"):
        build(name, time_encoding="halves", time_dim=2)


@pytest.mark.slow
@pytest.mark.keys("model(diffusion).pooling_projection", "model(flow).pooling_projection")
@pytest.mark.keys("model(regression).pooling_projection")
@pytest.mark.keys("model(diffusion).backbone_per_camera", "model(flow).backbone_per_camera")
@pytest.mark.keys("model(regression).backbone_per_camera")
@pytest.mark.keys("model(diffusion).num_cameras", "model(flow).num_cameras", "model(regression).num_cameras")
@every_policy
def test_a_backbone_for_each_camera(build, batch, name):
    """Two cameras with two frames of history each; every camera's features are those of its own modules."""
    net = build(name, 4, backbone_per_camera=True, num_cameras=2, pooling_projection=True).eval()
    data, encoder, parts = batch(4), net.observation, [batch(4)["state"]]
    assert len(encoder.backbone) == 2 and encoder.width == 6 + 4 * 8
    for camera in range(2):
        for frame in range(2):
            features = encoder.backbone[camera](data["images"][:, [2 * camera + frame]])[:, 0]
            linear = encoder.projection[camera][0]
            parts.append((encoder.pooling[camera](features) @ linear.weight.T + linear.bias).clamp(min=0))
    torch.testing.assert_close(encoder(data["state"], data["images"]), torch.cat(parts, dim=1))


@pytest.mark.keys("model(diffusion).num_heads", "model(flow).num_heads", "model(regression).num_heads")
@pytest.mark.keys("model(diffusion).dropout", "model(flow).dropout", "model(regression).dropout")
@every_policy
def test_heads_and_dropout(build, name):
    net = build(name, num_heads=4, dropout=0.3)
    assert net.network.layers[0].self_attention.num_heads == 4
    assert {module.p for module in net.modules() if isinstance(module, nn.Dropout)} == {0.3}
    with pytest.raises(ValueError, match="num_heads"):
        build(name, num_heads=3)


@pytest.mark.slow
@pytest.mark.keys("model(diffusion).unet_channels", "model(flow).unet_channels", "model(regression).unet_channels")
@pytest.mark.keys("model(diffusion).kernel_size", "model(flow).kernel_size", "model(regression).kernel_size")
@pytest.mark.keys(
    "model(diffusion).group_norm_groups", "model(flow).group_norm_groups", "model(regression).group_norm_groups"
)
@every_policy
def test_resolutions_of_the_unet(build, name):
    net = build(name, network="unet", unet_channels=[8, 12, 16], kernel_size=3, group_norm_groups=4, chunk_size=8)
    assert isinstance(net.network, UNet)
    lengths = []
    for block in net.network.middle:
        block.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape))
    net.eval()(torch.zeros(2, 6))
    assert set(lengths) == {(2, 16, 2)}  # a chunk of 8, halved twice
    assert {m.kernel_size for m in net.modules() if isinstance(m, nn.Conv1d)} == {(1,), (3,)}
    assert {m.num_groups for m in net.modules() if isinstance(m, nn.GroupNorm)} == {4}
    with pytest.raises(ValueError, match=r"chunk_size: 6 is not divisible by 4.* 8"):
        build(name, network="unet", unet_channels=[8, 8, 8], chunk_size=6)
    with pytest.raises(ValueError, match="group_norm_groups"):
        build(name, network="unet", unet_channels=[9], group_norm_groups=4)


@pytest.mark.slow
def test_the_paper_s_unet_has_its_number_of_parameters(build):
    """A published checkpoint of Diffusion Policy for PushT has 262.7 M parameters, 11.2 M of them in its ResNet-18."""
    net = build("diffusion", network="unet", unet_channels=[512, 1024, 2048], chunk_size=16)
    count = sum(parameter.numel() for parameter in net.network.parameters())
    assert 2.3e8 < count < 2.7e8
