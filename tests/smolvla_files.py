"""Folders of SmolVLA as LeRobot saves it, with random weights, and the velocity that they compute, by hand.

Written from the paper (arXiv:2506.01844) in one pass without a cache; transformers has the vision tower alone.
Shapes: B samples, K images, N tokens, H heads, E their size.
"""

import json

import torch
import torch.nn.functional as F
from lerobot_policy_files import linear, random_tensors
from safetensors.torch import save_file
from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

from data.text.tokenizers import train_bpe

SIZE, LAYERS, WIDTH, EXPERT, HEADS, KEYS, HEAD = 32, 3, 32, 24, 4, 2, 8
STATE, ACTION, CHUNK, PADDED = 5, 4, 6, {"max_state_dim": 8, "max_action_dim": 7}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": LAYERS + 1, "num_attention_heads": HEADS}
TEXT |= {"model_type": "llama", "num_key_value_heads": KEYS, "head_dim": HEAD}
TEXT |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e5}}  # LeRobot's code has 1e4 nevertheless
EXPERT_NAME = "model.vlm_with_expert.lm_expert"
VLM_NAME = "model.vlm_with_expert.vlm"
TEXT_NAME = f"{VLM_NAME}.model.text_model"


def expert_shapes(every):
    shapes, wide = {f"{EXPERT_NAME}.norm.weight": (EXPERT,)}, 4 * int(2 * EXPERT / 3)
    wide = 256 * -(-wide // 256)
    for layer in range(LAYERS):
        here, source = f"{EXPERT_NAME}.layers.{layer}", EXPERT if layer % every == 0 else KEYS * HEAD
        shapes |= {f"{here}.{name}.weight": (EXPERT,) for name in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {f"{here}.mlp.{name}_proj.weight": (wide, EXPERT) for name in ("gate", "up")}
        shapes |= {f"{here}.mlp.down_proj.weight": (EXPERT, wide)}
        shapes |= {f"{here}.self_attn.{name}_proj.weight": (KEYS * HEAD, source) for name in "kv"}
        shapes |= {f"{here}.self_attn.q_proj.weight": (HEADS * HEAD, EXPERT)}
        shapes |= {f"{here}.self_attn.o_proj.weight": (EXPERT, HEADS * HEAD)}
    shapes |= linear("model.state_proj", WIDTH, PADDED["max_state_dim"])
    shapes |= linear("model.action_in_proj", EXPERT, PADDED["max_action_dim"])
    shapes |= linear("model.action_out_proj", PADDED["max_action_dim"], EXPERT)
    shapes |= linear("model.action_time_mlp_in", EXPERT, 2 * EXPERT)
    return shapes | linear("model.action_time_mlp_out", EXPERT, EXPERT)


def write_smolvla(folder, texts, cameras=(), every=2, **changes):
    """Write a policy as FOLDER/policy and its backbone's configuration and tokenizer as FOLDER/vlm.

    Returns its weights and the vision-language model that has those of the images.
    """
    policy, tokenizer = folder / "policy", train_bpe(texts, 300)
    policy.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder / "vlm")
    config = SmolVLMConfig(
        vision_config={**VISION, "image_size": SIZE, "patch_size": 8},
        text_config={**TEXT, "vocab_size": len(tokenizer)},
        scale_factor=2,
        image_token_id=1,
    )
    config.save_pretrained(folder / "vlm")
    torch.manual_seed(0)
    vlm = SmolVLMForConditionalGeneration(config).eval()
    vlm.model.text_model.layers = vlm.model.text_model.layers[:LAYERS]
    with torch.no_grad():
        for value in vlm.parameters():
            value.add_(0.1 * torch.randn_like(value))
    weights = {f"{VLM_NAME}.{name}": value.clone() for name, value in vlm.state_dict().items()}
    weights |= random_tensors(expert_shapes(every))
    features = {"observation.state": {"type": "STATE", "shape": [STATE]}}
    features |= {f"observation.images.{name}": {"type": "VISUAL", "shape": [3, 24, 40]} for name in cameras}
    settings = {"type": "smolvla", "n_obs_steps": 1, "chunk_size": CHUNK, "n_action_steps": 4, **PADDED}
    settings |= {"input_features": features, "output_features": {"action": {"type": "ACTION", "shape": [ACTION]}}}
    settings |= {"normalization_mapping": {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"}}
    settings |= {"resize_imgs_with_padding": [SIZE, SIZE], "num_steps": 3, "vlm_model_name": str(folder / "vlm")}
    settings |= {"attention_mode": "cross_attn", "num_expert_layers": -1, "num_vlm_layers": LAYERS, "empty_cameras": 0}
    settings |= {"self_attn_every_n_layers": every, "expert_width_multiplier": EXPERT / WIDTH, "min_period": 4e-3}
    settings |= {"max_period": 4.0, "add_image_special_tokens": False, "adapt_to_pi_aloha": False}
    (policy / "config.json").write_text(json.dumps(settings | changes))
    save_file({name: value.contiguous() for name, value in weights.items()}, policy / "model.safetensors")
    return weights, vlm


def rotated(heads, positions):
    """heads (B, N, H, E) by positions (B, N), numbers i and i + E / 2 together, base 10,000."""
    rates = 10_000.0 ** (-torch.arange(HEAD // 2) * 2 / HEAD)
    cos, sin = (part(positions[..., None] * rates)[:, :, None] for part in (torch.cos, torch.sin))
    first, second = heads[..., : HEAD // 2], heads[..., HEAD // 2 :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def attended(query, key, value, allowed):
    """query (B, N, H, E), key and value (B, M, KEYS, E), allowed (B, N, M) -> (B, N, H · E)."""
    key, value = (part.repeat_interleave(HEADS // KEYS, dim=2) for part in (key, value))
    scores = torch.einsum("bnhe,bmhe->bhnm", query, key) / HEAD**0.5
    shares = scores.masked_fill(~allowed[:, None], -1e9).softmax(dim=-1)
    return torch.einsum("bhnm,bmhe->bnhe", shares, value).flatten(2)


def velocity_by_hand(weights, vlm, pixels, exists, ids, mask, state, chunk, time):
    """pixels (B, K, 3, SIZE, SIZE) from -1 to 1, exists (B, K), ids and mask (B, L), state (B, 8), chunk (B, C, 7),
    time (B,) -> (B, C, 7)."""

    def apply(name, values):
        return F.linear(values, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def norm(name, values):
        return F.rms_norm(values, values.shape[-1:], weights[f"{name}.weight"], vlm.config.text_config.rms_norm_eps)

    def heads(name, values):
        return apply(name, values).unflatten(-1, (-1, HEAD))

    images = [vlm.model.connector(vlm.model.vision_model(pixel_values=pixels[:, k])[0]) for k in range(pixels.shape[1])]
    words = weights[f"{TEXT_NAME}.embed_tokens.weight"][ids]
    prefix = torch.cat(
        (*(WIDTH**0.5 * each for each in (*images, words)), apply("model.state_proj", state)[:, None]), 1
    )
    periods = 4e-3 * 1000 ** torch.linspace(0, 1, EXPERT // 2, dtype=torch.float64)
    angles = (2 * torch.pi * time[:, None] / periods).float()
    encoded = torch.cat((angles.sin(), angles.cos()), dim=1)[:, None].expand(-1, CHUNK, -1)
    suffix = apply("model.action_time_mlp_in", torch.cat((apply("model.action_in_proj", chunk), encoded), dim=2))
    suffix = apply("model.action_time_mlp_out", F.silu(suffix))
    count = len(prefix[0])
    cells = images[0].shape[1] if images else 0
    here = torch.cat((exists.repeat_interleave(cells, dim=1), mask, mask.new_ones(len(ids), 1 + CHUNK)), dim=1)
    block = torch.tensor([0] * (count - 1) + list(range(1, CHUNK + 2)))
    allowed = (block[None, :] <= block[:, None]) & here[:, None, :]
    positions = here.cumsum(dim=1) - 1
    for layer in range(LAYERS):
        names = [f"{name}.layers.{layer}" for name in (TEXT_NAME, EXPERT_NAME)]
        tokens = [norm(f"{name}.input_layernorm", each) for name, each in zip(names, (prefix, suffix), strict=True)]
        query, key, value = (heads(f"{names[0]}.self_attn.{part}_proj", tokens[0]) for part in "qkv")
        query, key = (rotated(part, positions[:, :count]) for part in (query, key))
        read = attended(query, key, value, allowed[:, :count, :count])
        own = heads(f"{names[1]}.self_attn.q_proj", tokens[1])
        if layer % 2 == 0:
            more = [heads(f"{names[1]}.self_attn.{part}_proj", tokens[1]) for part in "kv"]
            own = rotated(own, positions[:, count:])
            key, value = torch.cat((key, rotated(more[0], positions[:, count:])), 1), torch.cat((value, more[1]), 1)
            acted = attended(own, key, value, allowed[:, count:])
        else:
            own = rotated(own, torch.arange(CHUNK).expand(len(ids), -1))
            key, value = (heads(f"{names[1]}.self_attn.{p}_proj", v.flatten(2)) for p, v in (("k", key), ("v", value)))
            acted = attended(own, key, value, allowed[:, count:, :count])
        after = []
        for name, before, found in zip(names, (prefix, suffix), (read, acted), strict=True):
            values = before + apply(f"{name}.self_attn.o_proj", found)
            inner = norm(f"{name}.post_attention_layernorm", values)
            gate = F.silu(apply(f"{name}.mlp.gate_proj", inner)) * apply(f"{name}.mlp.up_proj", inner)
            after.append(values + apply(f"{name}.mlp.down_proj", gate))
        prefix, suffix = after
    return apply("model.action_out_proj", norm(f"{EXPERT_NAME}.norm", suffix))
