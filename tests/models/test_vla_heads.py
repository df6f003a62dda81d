"""Heads of vision-language-action policies against transformers' layers and hand calculations."""

import pytest
import torch
import torch.nn.functional as F
from transformers import DynamicCache, LlamaConfig, LlamaModel
from vla_policies import ACTION, CHUNK, STATE, TEXT, batch_of, policy_of

import models.vla
from models.denoising_policy import NoisyChunks

every_head = pytest.mark.parametrize("head", ["flow", "regression", "diffusion"])
DIFFUSION = {"unet_channels": [16, 32], "group_norm_groups": 4, "time_dim": 8}


def headed(head, **keys):
    return policy_of(head=head, **{**(DIFFUSION if head == "diffusion" else {}), **keys})


def observation(net, batch):
    """The context and the padded state of a batch."""
    return net.read(*(batch.get(name) for name in ("state", "images", "image_mask", "prompt_ids", "prompt_mask")))


def without_actions(batch):
    return {key: value for key, value in batch.items() if key not in ("actions", "is_pad")}


# ---- the expert ----


def causal(count, bidirectional):
    allowed = torch.ones(count, count, dtype=torch.bool)
    return allowed if bidirectional else allowed.tril()


@pytest.mark.slow
@pytest.mark.keys("model(vla).bidirectional_actions", "model(vla).expert_width", "model(vla).num_layers")
@pytest.mark.parametrize("bidirectional_actions", [False, True])
@torch.no_grad()
def test_a_joint_expert_is_a_llama_that_continues_the_prefix(bidirectional_actions):
    net = policy_of(attention="joint", bidirectional_actions=bidirectional_actions, expert_width=0.5, num_layers=2)
    net, batch = net.eval(), batch_of()
    context, state = observation(net, batch)
    memory, _ = net.condition(context, state)
    expert = net.action_head.expert
    assert expert.shape.width == TEXT["hidden_size"] // 2 and len(expert.layers) == 2
    sizes = {"hidden_size": 16, "intermediate_size": 256, "num_hidden_layers": 2, "head_dim": 8, "vocab_size": 8}
    llama = LlamaModel(LlamaConfig(**{**TEXT, **sizes})).eval()
    weights = expert.state_dict()
    llama.load_state_dict({**weights, "embed_tokens.weight": llama.embed_tokens.weight})
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(zip(context.keys, context.values, strict=True)):
        cache.update(keys, values, layer)
    tokens = torch.randn(3, CHUNK, 16, generator=torch.Generator().manual_seed(0))
    seen = context.mask[:, None, None, :].expand(-1, -1, CHUNK, -1)
    own = causal(CHUNK, bidirectional_actions).expand(3, 1, -1, -1)
    places = context.mask.sum(dim=1, keepdim=True) + torch.arange(CHUNK)
    expected = llama(
        inputs_embeds=tokens, past_key_values=cache, position_ids=places, attention_mask=torch.cat((seen, own), dim=-1)
    ).last_hidden_state
    torch.testing.assert_close(expert(tokens, memory), expected, atol=1e-5, rtol=1e-5)


def rotated(heads, places):
    """heads (B, H, T, E): numbers i and i + E / 2 are turned by place / 10000^(2i / E)."""
    size = heads.shape[-1] // 2
    angles = torch.stack([places / 10000 ** (i / size) for i in range(size)], dim=-1)
    turned = torch.view_as_complex(torch.stack((heads[..., :size], heads[..., size:]), dim=-1).contiguous())
    turned = turned * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((turned.real, turned.imag), dim=-1)


@pytest.mark.slow
@pytest.mark.keys("model(vla).attention")
@pytest.mark.parametrize("attention", ["cross", "alternating"])
@torch.no_grad()
def test_cross_attention_by_hand(attention):
    """Queries count from 0 and see projections of the prefix's keys, and nothing else."""
    net, batch = policy_of(attention=attention).eval(), batch_of()
    context, state = observation(net, batch)
    memory, _ = net.condition(context, state)
    layers = net.action_head.expert.layers
    assert [layer.self_attn.is_cross for layer in layers] == (
        [True] * 3 if attention == "cross" else [False, True, False]
    )
    layer, attend = layers[1], layers[1].self_attn
    tokens = torch.randn(3, CHUNK, 24, generator=torch.Generator().manual_seed(0))
    seen = context.mask[:, None, None, :].expand(-1, -1, CHUNK, -1)
    angles = (torch.arange(CHUNK)[:, None] * context.rotations[1]).expand(3, -1, -1)
    ours = layer(tokens, memory.keys[1], memory.values[1], seen, angles)
    normed = layer.input_layernorm(tokens)
    query = rotated(attend.q_proj(normed).view(3, CHUNK, 4, 8).transpose(1, 2), torch.arange(CHUNK).float())
    flat = [tensor.transpose(1, 2).reshape(3, -1, 16) for tensor in (context.keys[1], context.values[1])]
    keys, values = attend.k_proj(flat[0]), attend.v_proj(flat[1])
    keys, values = (x.view(3, -1, 2, 8).repeat_interleave(2, dim=2).transpose(1, 2) for x in (keys, values))
    scores = (query @ keys.transpose(2, 3) / 8**0.5).masked_fill(~context.mask[:, None, None], -torch.inf)
    hidden = tokens + attend.o_proj((scores.softmax(-1) @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(ours, hidden + layer.mlp(layer.post_attention_layernorm(hidden)), atol=1e-5, rtol=1e-5)


# ---- losses and sampling ----


def record_velocity(net, monkeypatch, answer):
    calls = []

    def velocity(chunk, time, condition):
        calls.append((chunk, time))
        return answer(chunk, time)

    monkeypatch.setattr(net.action_head, "velocity", velocity)
    return calls


@pytest.mark.slow
@pytest.mark.keys("model(vla).max_action_dim", "model(vla).max_state_dim", "model(vla).time_alpha")
def test_the_flow_loss_by_hand(monkeypatch):
    """On the real dimensions alone, over the steps that exist; the padded dimensions have noise."""
    net, batch = policy_of(max_action_dim=8, max_state_dim=10, time_alpha=3.0).train(), batch_of()
    assert net.state_proj.in_features == 10 and net.action_head.action_in_proj.in_features == 8
    noise = torch.randn(3, CHUNK, 8, generator=torch.Generator().manual_seed(5))
    level = torch.tensor([0.1, 0.5, 0.9])
    monkeypatch.setattr(net.action_head, "draw", lambda actions: (noise, level))
    inside = net.action_head.velocity
    calls = record_velocity(net, monkeypatch, lambda chunk, time: inside(chunk, time, condition))
    condition = net.condition(*observation(net, batch))
    loss = net(**batch)["loss"]
    ((chunk, time),) = calls
    torch.testing.assert_close(time, 0.001 + 0.999 * level ** (1 / 3))
    actions = F.pad(batch["actions"], (0, 5))
    torch.testing.assert_close(chunk, time[:, None, None] * noise + (1 - time[:, None, None]) * actions)
    error = (inside(chunk, time, condition) - (noise - actions))[..., :ACTION] ** 2
    torch.testing.assert_close(loss, error[~batch["is_pad"]].mean())


def test_the_velocity_by_hand():
    """SmolVLA's projections of actions and time, with its sinusoid of periods from 0.004 to 4."""
    net, batch = policy_of().eval(), batch_of()
    head, (context, state) = net.action_head, observation(net, batch)
    chunk, time = batch["actions"], torch.tensor([0.2, 0.5, 1.0])
    periods = [0.004 * 1000 ** (i / 11) for i in range(12)]
    angles = torch.tensor([[2 * torch.pi * t / period for period in periods] for t in time.tolist()])
    both = torch.cat(
        (head.action_in_proj(chunk), torch.cat((angles.sin(), angles.cos()), 1)[:, None].expand(-1, 4, -1)), -1
    )
    tokens = head.action_time_mlp_out(F.silu(head.action_time_mlp_in(both)))
    condition = net.condition(context, state)
    expected = head.action_out_proj(head.expert(tokens, condition[0]))
    torch.testing.assert_close(head.velocity(chunk, time, condition), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.keys("model(vla).sampling_steps")
@pytest.mark.parametrize("sampling_steps", [1, 7])
@torch.no_grad()
def test_an_exact_velocity_leads_to_the_actions(sampling_steps, monkeypatch):
    net, batch = policy_of(sampling_steps=sampling_steps).eval(), batch_of(size=1)
    calls = record_velocity(net, monkeypatch, lambda chunk, time: (chunk - batch["actions"]) / time[:, None, None])
    reads = []
    net.backbone.language_model.register_forward_pre_hook(lambda *_: reads.append(1))
    torch.testing.assert_close(net(**without_actions(batch))["actions"], batch["actions"])
    assert len(calls) == sampling_steps and len(reads) == 2  # images and prompt, then the state: once for all steps


@pytest.mark.slow
@pytest.mark.keys("model(vla).head")
@every_head
@torch.no_grad()
def test_losses_do_not_depend_on_the_batch(head):
    net, batch = headed(head).eval(), batch_of()
    batch["is_pad"][:] = False
    whole = net(**batch)["loss"]
    parts = [net(**{key: value[i : i + 1] for key, value in batch.items()})["loss"] for i in range(3)]
    torch.testing.assert_close(whole, torch.stack(parts).mean())


@torch.no_grad()
def test_the_regression_loss_by_hand():
    net, batch = headed("regression").eval(), batch_of()
    output = net(**batch)
    expected = (output["actions"] - batch["actions"]).abs()[~batch["is_pad"]].mean()
    torch.testing.assert_close(output["loss"], expected)
    assert not torch.allclose(output["actions"][:, 0], output["actions"][:, 1])


@pytest.mark.slow
@pytest.mark.keys("model(vla).sampler", "model(vla).train_timesteps", "model(vla).beta_schedule")
@pytest.mark.keys("model(vla).prediction_type", "model(vla).clip_sample", "model(vla).unet_channels")
@pytest.mark.keys("model(vla).kernel_size", "model(vla).group_norm_groups", "model(vla).time_dim")
@pytest.mark.parametrize(
    "keys",
    [
        {"sampler": "ddpm", "train_timesteps": 20, "sampling_steps": 20, "beta_schedule": "linear"},
        {"sampler": "ddim", "prediction_type": "sample", "clip_sample": False, "kernel_size": 3},
    ],
)
@torch.no_grad()
def test_diffusion_is_that_of_diffusers(keys):
    """The condition is the mean of the last hidden states of tokens that exist; sampling is diffusers' own loop."""
    import diffusers

    net = policy_of(head="diffusion", unet_channels=[16, 32], group_norm_groups=4, time_dim=8, **keys).eval()
    head, batch = net.action_head, batch_of(size=1)
    batch["prompt_mask"][:, 3:] = False
    context, state = observation(net, batch)
    mean = context.hidden[context.mask].mean(dim=0, keepdim=True)
    torch.testing.assert_close(net.condition(context, state), mean)
    given = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "epsilon", "clip_sample": True, **keys}
    kind = {"ddim": diffusers.DDIMScheduler, "ddpm": diffusers.DDPMScheduler}[given.pop("sampler")]
    steps, _ = given.pop("sampling_steps", 10), given.pop("kernel_size", 5)
    scheduler = kind(num_train_timesteps=given.pop("train_timesteps", 100), **given)
    scheduler.set_timesteps(steps)
    chunk = torch.randn(1, CHUNK, ACTION, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    for timestep in scheduler.timesteps:
        chunk = scheduler.step(
            head.network(chunk, timestep[None], mean), timestep, chunk, generator=generator
        ).prev_sample
    torch.testing.assert_close(net(**without_actions(batch))["actions"], chunk)
    convolutions = [module for module in head.modules() if isinstance(module, torch.nn.Conv1d)]
    assert (keys.get("kernel_size", 5),) in {module.kernel_size for module in convolutions}
    assert {module.num_groups for module in head.modules() if isinstance(module, torch.nn.GroupNorm)} == {4}
    assert head.network.time.dim == 8 and head.network.middle[0].second[0].out_channels == 32


@pytest.mark.keys("model(vla).film_scale", "model(vla).time_encoding")
def test_the_unet_is_that_of_the_diffusion_policy():
    head = headed("diffusion", film_scale=False, time_encoding="halves").action_head
    assert head.network.middle[0].modulation[1].out_features == 32  # a shift alone
    angles = 3 * 1e-4 ** (torch.arange(4) / 3)
    encoded = head.network.time.encode(torch.tensor([3.0]), 8)[0]
    torch.testing.assert_close(encoded, torch.cat((angles.sin(), angles.cos())))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"unet_channels": [6]}, "group_norm_groups"),
        ({"unet_channels": [8, 8, 8, 8]}, "chunk_size: 4 is not divisible by 8"),
        ({"time_dim": 7}, "use 8"),
        ({"train_timesteps": 5}, "sampling_steps: 10 is more"),
    ],
)
def test_sizes_that_diffusion_cannot_have(keys, message):
    with pytest.raises(ValueError, match=message):
        headed("diffusion", **keys)


# ---- state, insulation, execution ----


@pytest.mark.slow
@pytest.mark.keys("model(vla).state_as")
@every_head
@pytest.mark.parametrize("state_as", ["prefix", "suffix"])
@torch.no_grad()
def test_the_state_reaches_the_actions(head, state_as):
    """As a token of the language model or of the head; without one the actions do not depend on it."""
    net, batch = headed(head, state_as=state_as).eval(), batch_of()
    before, (context, _) = net(**without_actions(batch))["actions"], observation(net, batch)
    assert not torch.allclose(net(**without_actions({**batch, "state": batch["state"] + 3}))["actions"], before)
    assert context.mask.shape[1] == 2 * 4 + 3 + (state_as == "prefix")  # the longest prompt has 3 tokens
    for projection in [module for name, module in net.named_modules() if name.endswith("state_proj")]:
        projection.weight.zero_()
    if head != "diffusion" or state_as == "prefix":
        same = net(**without_actions({**batch, "state": batch["state"] + 3}))["actions"]
        assert torch.equal(same, net(**without_actions(batch))["actions"])


@pytest.mark.slow
@torch.no_grad()
def test_the_state_before_bidirectional_actions_does_not_see_them():
    net, batch = policy_of(state_as="suffix", bidirectional_actions=True, attention="joint").eval(), batch_of()
    memory, state = net.condition(*observation(net, batch))
    tokens = torch.randn(3, CHUNK, 24, generator=torch.Generator().manual_seed(0))
    first = net.action_head.expert(torch.cat((state, tokens), dim=1), memory)
    other = net.action_head.expert(torch.cat((state, tokens + 1), dim=1), memory)
    torch.testing.assert_close(first[:, 0], other[:, 0])
    assert not torch.allclose(first[:, 1], other[:, 1])


@pytest.mark.slow
@pytest.mark.keys("model(vla).detach_backbone")
def test_an_insulated_backbone_learns_from_texts_alone():
    keys = {"detach_backbone": True, "state_as": "suffix", "target_tokens": 3}
    net, batch = policy_of(**keys).train(), batch_of(target=3)
    losses = net(**batch)["losses"]
    losses["action"].backward(retain_graph=True)
    assert all(weight.grad is None for weight in net.backbone.parameters())
    assert all(weight.grad is not None for weight in net.action_head.parameters())
    losses["language"].backward()
    assert all(weight.grad is not None for weight in net.backbone.parameters())
    for wrong, word in (({"state_as": "prefix"}, "state_as"), ({"target_tokens": 0}, "use_reasoning")):
        with pytest.raises(ValueError, match=word):
            policy_of(**{**keys, **wrong})


@pytest.mark.slow
@pytest.mark.keys("model(vla).scale_embeddings")
@torch.no_grad()
def test_scaled_embeddings():
    inputs = []
    for scale_embeddings in (False, True):
        net = policy_of(scale_embeddings=scale_embeddings).eval()
        net.backbone.language_model.register_forward_pre_hook(
            lambda _, args, kwargs: inputs.append(kwargs["inputs_embeds"]), with_kwargs=True
        )
        observation(net, batch_of())
    torch.testing.assert_close(inputs[2], inputs[0] * 32**0.5)
    torch.testing.assert_close(inputs[3], inputs[1])  # the state's token


@pytest.mark.slow
@pytest.mark.keys("model(vla).n_action_steps", "model(vla).temporal_ensemble_coeff", "model(vla).inference_delay")
@pytest.mark.keys("model(vla).past_actions")
@torch.no_grad()
def test_chunks_are_executed_as_those_of_other_policies():
    batch = without_actions(batch_of(size=1))

    def actions(count, **keys):
        net, chunks = policy_of(**keys).eval(), []
        predict = net.predict_chunk
        net.predict_chunk = lambda inputs: chunks.append(predict(inputs)) or chunks[-1]
        return [net.select_action(batch) for _ in range(count)], chunks

    taken, chunks = actions(3, n_action_steps=2)
    assert len(chunks) == 2 and torch.equal(taken[1], chunks[0][0, 1]) and torch.equal(taken[2], chunks[1][0, 0])
    assert not torch.equal(chunks[0], chunks[1])  # each has noise of its own
    taken, chunks = actions(2, temporal_ensemble_coeff=0.1)
    weight = torch.exp(torch.tensor(-0.1))
    torch.testing.assert_close(taken[1], (chunks[0][0, 1] + weight * chunks[1][0, 0]) / (1 + weight))
    taken, chunks = actions(3, n_action_steps=2, inference_delay=1)
    assert torch.equal(taken[2], chunks[0][0, 2]) and len(chunks) == 2
    taken, chunks = actions(1, past_actions=1)
    assert torch.equal(taken[0], chunks[0][0, 1])


@pytest.mark.keys("model(vla).state_dim", "model(vla).action_dim", "model(vla).chunk_size", "model(vla).num_images")
@pytest.mark.keys("model(vla).image_height", "model(vla).image_width", "model(vla).vocab_size")
@pytest.mark.parametrize("key", ["state_dim", "action_dim", "chunk_size", "num_images", "image_height", "image_width"])
def test_sizes_come_from_the_data(key):
    net = policy_of()
    assert (net.state_proj.in_features, net.action_head.action_out_proj.out_features) == (STATE, ACTION)
    assert net.get_input_embeddings().num_embeddings == 64
    for name in (key, "vocab_size"):
        with pytest.raises(ValueError, match=name):
            policy_of(**{name: None})


def test_dimensions_that_are_too_small():
    with pytest.raises(ValueError, match="max_state_dim: 4"):
        policy_of(max_state_dim=4)


def test_noise_in_training_differs_between_samples():
    assert {"use_reasoning", "llm_loss_weight"} <= models.vla.PROCESS_KEYS
    noise, level = NoisyChunks().draw(torch.zeros(4, 3, 2))
    assert len(set(level.tolist())) == 4 and noise.std() > 0.5
