"""Vision-language-action policies of every family against transformers' own forward, and with themselves cut otherwise.

Shapes: B batch, K images, n tokens of an image, L prompt tokens.
"""

import functools
import re

import pytest
import torch
import vla_policies
from adapting import trained
from vla_policies import FAMILIES, batch_of, config_of, policy_of

import models.vla
from models.adapt.submodules import names_in_part, parameters_in, parts_of
from models.vla.images import patches, preprocess

every_family = pytest.mark.parametrize("family", FAMILIES)
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@functools.cache
def policy(family):
    """A policy that writes texts; tests leave it as it is."""
    return policy_of(family, target_tokens=3).eval()


def sample(batch, index):
    return {key: value[index : index + 1] for key, value in batch.items()}


def without(batch, *names):
    return {key: value for key, value in batch.items() if key not in names}


# ---- the seam to transformers ----


def own_forward(policy, batch):
    """Hidden states (B, K·n + L, D) of transformers' model of images among tokens, and its keys and values."""
    vlm, config = policy.backbone.vlm, policy.backbone.vlm.config
    pixels = preprocess(batch["images"].flatten(0, 1), 32, "pad", [0.5] * 3, [0.5] * 3)
    count = 4 if family_of(policy) != "paligemma" else 16
    starts = [getattr(config, name) for name in ("vision_start_token_id", "boi_token_index") if hasattr(config, name)]
    ends = [getattr(config, name) for name in ("vision_end_token_id", "eoi_token_index") if hasattr(config, name)]
    one = torch.tensor([*starts, *[config.image_token_id] * count, *ends])
    size, images = batch["images"].shape[:2]
    ids = torch.cat((one.repeat(size, images), batch["prompt_ids"]), dim=1)
    options = {}
    if hasattr(vlm, "visual"):
        options["image_grid_thw"] = torch.tensor([[1, 4, 4]] * len(pixels))
        options["mm_token_type_ids"] = (ids == config.image_token_id).int()
        pixels = slow_patches(pixels)
    elif hasattr(vlm, "connector"):
        pixels = pixels.unflatten(0, (size, images))
    places = torch.arange(ids.shape[1])
    if family_of(policy) == "gemma3":  # it lets the tokens of an image see one another
        allowed = (places[None] <= places[:, None])[None, None].expand(size, 1, -1, -1)
        options["attention_mask"] = {"full_attention": allowed, "sliding_attention": allowed}
    if family_of(policy) == "paligemma":  # all of a prefix is bidirectional; it counts from 1
        options |= {"token_type_ids": torch.zeros_like(ids), "position_ids": places[None]}
    return vlm(input_ids=ids, pixel_values=pixels, use_cache=True, **options)


def family_of(policy):
    return policy.backbone.vlm.config.model_type


def slow_patches(pixels, patch=8, merge=2, frames=2):
    """Patches (N · 16, 3 · 2 · 64), token by token."""
    rows = []
    for image in pixels:
        for y in range(0, 32, patch * merge):
            for x in range(0, 32, patch * merge):
                for top in range(y, y + patch * merge, patch):
                    for left in range(x, x + patch * merge, patch):
                        piece = image[:, top : top + patch, left : left + patch]
                        rows.append(torch.stack([piece] * frames, dim=1).flatten())
    return torch.stack(rows)


@pytest.mark.slow
@pytest.mark.keys("model(vla).prefix_attention", "model(vla).config", "model.name")
@every_family
def test_reading_is_transformers_own_forward(family):
    kind = "bidirectional" if family == "paligemma" else "causal"
    policy, batch = policy_of(family, prefix_attention=kind, target_tokens=3).eval(), batch_of(size=2)
    batch["prompt_mask"][:] = True
    with torch.no_grad():
        ours = policy.backbone.read(batch["images"], None, batch["prompt_ids"], batch["prompt_mask"])
        theirs = own_forward(policy, batch)
    torch.testing.assert_close(ours.hidden, theirs.last_hidden_state, **CLOSE)
    for layer, keys in zip(theirs.past_key_values.layers, ours.keys, strict=True):
        torch.testing.assert_close(keys, layer.keys, **CLOSE)
    if kind == "causal":
        other = policy_of(family, target_tokens=3).eval().backbone
        both = other.read(batch["images"], None, batch["prompt_ids"], batch["prompt_mask"])
        assert not torch.allclose(both.hidden, ours.hidden, atol=1e-3)


@pytest.mark.slow
@every_family
@torch.no_grad()
def test_reading_in_parts_is_reading_at_once(family):
    """Prefix, then state, then text with a cache; or all tokens in one call without one, with the whole mask."""
    net, batch = policy(family), batch_of(target=4)
    names = ("state", "images", "image_mask", "prompt_ids", "prompt_mask")
    prefix, state = net.read(*(batch.get(name) for name in names))
    parts = net.backbone.append(prefix, net.backbone.embed(batch["target_ids"]), batch["target_mask"])
    calls = []
    net.backbone.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append(kwargs), with_kwargs=True
    )
    net.read(*(batch.get(name) for name in names))
    net.backbone.append(prefix, net.backbone.embed(batch["target_ids"]), batch["target_mask"])
    net.backbone.language_model._forward_pre_hooks.clear()
    tokens = torch.cat([call["inputs_embeds"] for call in calls], dim=1)
    places = torch.cat([call["position_ids"] for call in calls], dim=-1)
    first, count = calls[0]["inputs_embeds"].shape[1], tokens.shape[1]
    seen = torch.ones(count, count, dtype=torch.bool).tril()
    seen[:first, :first] = True
    exists = torch.cat((prefix.mask, batch["target_mask"]), dim=1)
    mask = (seen & exists[:, None, :]) | torch.eye(count, dtype=torch.bool)
    extra = {key: value for key, value in calls[0].items() if key == "deepstack_visual_embeds"}
    if extra:
        extra["visual_pos_masks"] = torch.nn.functional.pad(calls[0]["visual_pos_masks"], (0, count - first))
    once = net.backbone.language_model(
        inputs_embeds=tokens, position_ids=places, attention_mask=mask[:, None], use_cache=False, **extra
    ).last_hidden_state
    torch.testing.assert_close(parts.hidden[exists], once[exists], **CLOSE)


def test_patches_of_qwen():
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(patches(pixels, 8, 2, 2), slow_patches(pixels))


# ---- a sample and what is beside it ----


@pytest.mark.slow
@every_family
@torch.no_grad()
def test_a_sample_depends_on_nothing_beside_it(family):
    """Neither on other samples, nor on the length and the side of its padding, nor on an image that does not exist."""
    net, batch = policy(family), batch_of(target=3)
    batch["image_mask"] = torch.tensor([[True, True], [True, False], [False, True]])
    whole = net(**batch)
    for index in range(3):
        one = sample(batch, index)
        alone = net(**one)
        length = int(one["prompt_mask"].sum())
        one["prompt_ids"] = torch.cat((torch.full((1, 3), 9), one["prompt_ids"][:, :length]), dim=1)
        one["prompt_mask"] = torch.arange(length + 3)[None] >= 3
        one["target_ids"] = torch.nn.functional.pad(one["target_ids"], (0, 2), value=7)
        for name in ("target_mask", "target_loss_mask"):
            one[name] = torch.nn.functional.pad(one[name], (0, 2))
        one["images"] = one["images"].where(one["image_mask"][..., None, None, None], 255)
        padded = net(**one)
        for key in ("actions", "loss"):
            torch.testing.assert_close(padded[key], alone[key], **CLOSE)
        torch.testing.assert_close(whole["actions"][index], alone["actions"][0], **CLOSE)
        exists = batch["target_mask"][index]
        assert torch.equal(whole["target_predictions"][index][exists], padded["target_predictions"][0, :3][exists])
    assert not torch.allclose(whole["actions"][0], whole["actions"][1], atol=1e-4)


@pytest.mark.slow
@torch.no_grad()
def test_an_image_that_does_not_exist_is_as_if_it_were_not_there():
    net, batch = policy("qwen2_vl"), batch_of(size=1, num_images=3)
    mask = torch.tensor([[True, False, True]])
    some = net.backbone.read(batch["images"], mask, batch["prompt_ids"], batch["prompt_mask"])
    fewer = net.backbone.read(batch["images"][:, [0, 2]], None, batch["prompt_ids"], batch["prompt_mask"])
    torch.testing.assert_close(some.hidden[some.mask], fewer.hidden[fewer.mask], **CLOSE)
    assert torch.equal(some.position, fewer.position)


# ---- images ----


@pytest.mark.slow
@pytest.mark.keys("model(vla).image_resize", "model(vla).image_mean", "model(vla).image_std", "model(vla).image_size")
def test_images_are_padded_at_the_left_and_the_top():
    images = torch.full((1, 3, 24, 32), 255, dtype=torch.uint8)
    padded = preprocess(images, 16, "pad", [0.5] * 3, [0.5] * 3)
    assert (padded[..., 4:, :] == 1).all() and (padded[..., :4, :] == -1).all() and padded.shape == (1, 3, 16, 16)
    tall = preprocess(images.transpose(2, 3), 16, "pad", [0.5] * 3, [0.5] * 3)
    assert (tall[..., 4:] == 1).all() and (tall[..., :4] == -1).all()
    assert (
        preprocess(images, 16, "stretch", [0.0, 0.5, 1.0], [1.0, 1.0, 0.5])[0, :, 0, 0] == torch.tensor([1, 0.5, 0])
    ).all()
    net = policy_of(image_resize="stretch", image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.25, 0.2], image_size=16)
    seen = []
    net.backbone.vlm.vision_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True
    )
    batch = batch_of()
    net.eval()(**without(batch, "actions"))
    expected = preprocess(batch["images"].flatten(0, 1), 16, "stretch", [0.1, 0.2, 0.3], [0.5, 0.25, 0.2])
    assert torch.equal(seen[0]["pixel_values"], expected)


@pytest.mark.parametrize(
    ("family", "size", "message"),
    [
        ("smolvlm", 24, "multiple of 16"),
        ("smolvlm", 48, "built for 32"),
        ("qwen2_vl", 24, "use 32"),
        ("gemma3", 16, "32"),
    ],
)
def test_sizes_of_images_that_a_backbone_cannot_take(family, size, message):
    with pytest.raises(ValueError, match=rf"model.image_size: {size}.*{message}"):
        policy_of(family, image_size=size)


def test_a_backbone_without_a_size_of_its_own_sees_224_pixels():
    assert models.vla.build(config_of("qwen2_vl", image_size=None), process()).config.image_size == 224


def process(**keys):
    from types import SimpleNamespace

    return SimpleNamespace(**{**vla_policies.PROCESS, **keys})


# ---- parts ----


@pytest.mark.slow
@every_family
def test_parts_of_a_family(family):
    """By their members' names: each weight is in one part; the projector of Qwen is outside its vision tower."""
    net = policy(family)
    inside = {part: parameters_in(net, names_in_part(net, part, models.vla.PARTS)) for part in models.vla.PARTS}
    small = ["vision_tower", "projector", "llm", "lm_head", "action_expert"]
    names = [name for name, _ in net.named_parameters()]
    assert sorted(name for part in small for name in inside[part]) == sorted(names)
    assert inside["projector"] == {n for n in names if "merger" in n or "connector" in n or "multi_modal_proj" in n}
    assert (
        inside["vision_tower"]
        == {n for n in names if re.match(r"backbone\.vlm\.(vision_|visual)", n)} - inside["projector"]
    )
    assert inside["embeddings"] == {n for n in names if "embed_tokens" in n}
    assert inside["backbone"] == set(names) - inside["action_expert"] and inside["head"] == inside["action_expert"]
    assert all(inside[part] for part in ("vision_tower", "projector", "llm", "embeddings", "action_expert"))
    derived = parts_of(net.backbone.vlm, None)
    for part in ("vision_tower", "projector"):
        within = parameters_in(net.backbone.vlm, names_in_part(net.backbone.vlm, part, derived))
        assert {f"backbone.vlm.{name}" for name in within} == inside[part]


@pytest.mark.slow
@every_family
@pytest.mark.parametrize("writes", [0, 3])
def test_every_weight_that_trains_has_a_gradient(family, writes):
    """Several processes wait for the gradients of all of them."""
    net = policy_of(family, target_tokens=writes).train()
    net(**batch_of(target=writes))["loss"].backward()
    assert [name for name, weight in net.named_parameters() if weight.requires_grad and weight.grad is None] == []
    assert bool(writes) == (trained(net) == {name for name, _ in net.named_parameters()})


@pytest.mark.slow
def test_a_state_policy_has_no_vision_tower(tmp_path):
    net, batch = policy_of(num_images=0).eval(), batch_of(num_images=0)
    assert not any("vision" in name or "connector" in name for name, _ in net.named_parameters())
    net.save_pretrained(tmp_path)
    loaded = models.vla.load(tmp_path)
    assert torch.equal(loaded(**batch)["actions"], net(**batch)["actions"])
    with pytest.raises(ValueError, match="images per sample"):
        net(**batch_of())


@pytest.mark.slow
@every_family
@torch.no_grad()
def test_a_saved_policy_is_the_same(family, tmp_path):
    net, batch = policy(family), batch_of(target=3)
    net.save_pretrained(tmp_path)
    loaded = models.vla.load(tmp_path)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in net.state_dict().items())
    ours, theirs = net(**batch), loaded(**batch)
    assert torch.equal(ours["actions"], theirs["actions"]) and torch.equal(ours["loss"], theirs["loss"])
