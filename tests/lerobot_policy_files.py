"""Folders of LeRobot policies with random weights under LeRobot's names, and what these policies compute, by hand.

Written from the papers' formulas with torch.nn.functional and torch's own attention; lerobot is not needed.
Shapes: B samples, N images.
"""

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

D, HEADS, FEEDFORWARD, LATENT = 8, 2, 12, 2
IMAGE = (32, 64)
PLAIN = {name: name for name in ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")}
NUMBERED = dict(zip(PLAIN, ("0", "1", "4", "5", "6", "7"), strict=True))
UNET = {"horizon": 8, "down_dims": [8, 16], "diffusion_step_embed_dim": 8, "spatial_softmax_num_keypoints": 3}
UNET |= {"kernel_size": 3, "n_groups": 8, "n_obs_steps": 2, "n_action_steps": 4}


def linear(name, width, inputs):
    return {f"{name}.weight": (width, inputs), f"{name}.bias": (width,)}


def norm(name, width=D):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def layer(name, *attentions):
    shapes = linear(f"{name}.linear1", FEEDFORWARD, D) | linear(f"{name}.linear2", D, FEEDFORWARD)
    for number, attention in enumerate(attentions, 1):
        here = f"{name}.{attention}"
        shapes |= {f"{here}.in_proj_weight": (3 * D, D), f"{here}.in_proj_bias": (3 * D,)}
        shapes |= linear(f"{here}.out_proj", D, D) | norm(f"{name}.norm{number}")
    return shapes | norm(f"{name}.norm{len(attentions) + 1}")


def resnet18(prefix, places, with_statistics):
    def batch_norm(name, width):
        shapes = norm(name, width)
        statistics = {f"{name}.running_mean": (width,), f"{name}.running_var": (width,)}
        return shapes | statistics if with_statistics else shapes

    shapes = {f"{prefix}.{places['conv1']}.weight": (64, 3, 7, 7)} | batch_norm(f"{prefix}.{places['bn1']}", 64)
    before = 64
    for stage, width in enumerate((64, 128, 256, 512), 1):
        for block in range(2):
            here = f"{prefix}.{places[f'layer{stage}']}.{block}"
            shapes |= {f"{here}.conv1.weight": (width, before, 3, 3), f"{here}.conv2.weight": (width, width, 3, 3)}
            shapes |= batch_norm(f"{here}.bn1", width) | batch_norm(f"{here}.bn2", width)
            if before != width:
                shapes |= {f"{here}.downsample.0.weight": (width, before, 1, 1)}
                shapes |= batch_norm(f"{here}.downsample.1", width)
            before = width
    return shapes


def act_shapes(state, environment, action, chunk, cameras):
    model = {f"model.{name}": shape for name, shape in layer("encoder.layers.0", "self_attn").items()}
    model |= layer("model.decoder.layers.0", "self_attn", "multihead_attn") | norm("model.decoder.norm")
    model |= layer("model.vae_encoder.layers.0", "self_attn")
    model |= {"model.vae_encoder_cls_embed.weight": (1, D), "model.vae_encoder_pos_enc": (1, chunk + 2, D)}
    model |= linear("model.vae_encoder_robot_state_input_proj", D, state)
    model |= linear("model.vae_encoder_action_input_proj", D, action)
    model |= linear("model.vae_encoder_latent_output_proj", 2 * LATENT, D)
    model |= linear("model.encoder_robot_state_input_proj", D, state)
    model |= linear("model.encoder_latent_input_proj", D, LATENT) | linear("model.action_head", action, D)
    tokens = 2 + bool(environment)
    model |= {"model.encoder_1d_feature_pos_embed.weight": (tokens, D), "model.decoder_pos_embed.weight": (chunk, D)}
    if environment:
        model |= linear("model.encoder_env_state_input_proj", D, environment)
    if cameras:
        model |= resnet18("model.backbone", PLAIN, True)
        model |= {"model.encoder_img_feat_input_proj.weight": (D, 512, 1, 1)}
        model |= {"model.encoder_img_feat_input_proj.bias": (D,)}
    return model


def block_shapes(name, inputs, width, condition):
    shapes = {f"{name}.conv1.block.0.weight": (width, inputs, 3), f"{name}.conv2.block.0.weight": (width, width, 3)}
    for part in ("conv1", "conv2"):
        shapes |= {f"{name}.{part}.block.0.bias": (width,)} | norm(f"{name}.{part}.block.1", width)
    shapes |= linear(f"{name}.cond_encoder.1", 2 * width, condition)
    if inputs != width:
        shapes |= {f"{name}.residual_conv.weight": (width, inputs, 1), f"{name}.residual_conv.bias": (width,)}
    return shapes


def diffusion_shapes(state, environment, action, cameras):
    low, high = UNET["down_dims"]
    time, points = UNET["diffusion_step_embed_dim"], 2 * UNET["spatial_softmax_num_keypoints"]
    condition, unet = time + UNET["n_obs_steps"] * (state + environment + cameras * points), "diffusion.unet"
    shapes = linear(f"{unet}.diffusion_step_encoder.1", 4 * time, time)
    shapes |= linear(f"{unet}.diffusion_step_encoder.3", time, 4 * time)
    for name, inputs, width in (
        ("down_modules.0.0", action, low),
        ("down_modules.0.1", low, low),
        ("down_modules.1.0", low, high),
        ("down_modules.1.1", high, high),
        ("mid_modules.0", high, high),
        ("mid_modules.1", high, high),
        ("up_modules.0.0", 2 * high, low),
        ("up_modules.0.1", low, low),
    ):
        shapes |= block_shapes(f"{unet}.{name}", inputs, width, condition)
    for name, kernel in (("down_modules.0.2", 3), ("up_modules.0.2", 4)):
        shapes |= {f"{unet}.{name}.weight": (low, low, kernel), f"{unet}.{name}.bias": (low,)}
    shapes |= {f"{unet}.final_conv.0.block.0.weight": (low, low, 3), f"{unet}.final_conv.0.block.0.bias": (low,)}
    shapes |= norm(f"{unet}.final_conv.0.block.1", low)
    shapes |= {f"{unet}.final_conv.1.weight": (action, low, 1), f"{unet}.final_conv.1.bias": (action,)}
    if cameras:
        shapes |= resnet18("diffusion.rgb_encoder.backbone", NUMBERED, False)
        shapes |= {"diffusion.rgb_encoder.pool.nets.weight": (points // 2, 512, 1, 1)}
        shapes |= {
            "diffusion.rgb_encoder.pool.nets.bias": (points // 2,),
            "diffusion.rgb_encoder.pool.pos_grid": (2, 2),
        }
        shapes |= linear("diffusion.rgb_encoder.out", points, points)
    return shapes


def random_tensors(shapes):
    generator = torch.Generator().manual_seed(0)

    def tensor(name, shape):
        values = torch.randn(shape, generator=generator) / max(1, math.prod(shape[1:])) ** 0.5
        return values.abs() + 0.5 if name.endswith("running_var") else values

    return {name: tensor(name, shape) for name, shape in shapes.items()}


def write_policy(folder: Path, kind, state, action, environment=0, chunk=4, cameras=(), statistics=None, **changes):
    """Write a policy's folder; returns its weights. `statistics`: feature -> name -> numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    features = {"observation.state": {"type": "STATE", "shape": [state]}}
    features |= {f"observation.images.{c}": {"type": "VISUAL", "shape": [3, *IMAGE]} for c in cameras}
    if environment:
        features["observation.environment_state"] = {"type": "ENV", "shape": [environment]}
    settings = {"type": kind, "n_obs_steps": 1, "input_features": features}
    settings["output_features"] = {"action": {"type": "ACTION", "shape": [action]}}
    if kind == "act":
        weights = random_tensors(act_shapes(state, environment, action, chunk, cameras))
        settings |= {"normalization_mapping": dict.fromkeys(("VISUAL", "STATE", "ACTION"), "MEAN_STD")}
        settings |= {"chunk_size": chunk, "n_action_steps": chunk, "vision_backbone": "resnet18", "pre_norm": False}
        settings |= {"replace_final_stride_with_dilation": 0, "dim_model": D, "n_heads": HEADS, "dropout": 0.1}
        settings |= {"dim_feedforward": FEEDFORWARD, "feedforward_activation": "relu", "n_encoder_layers": 1}
        settings |= {"n_decoder_layers": 1, "use_vae": True, "latent_dim": LATENT, "n_vae_encoder_layers": 1}
        settings |= {"temporal_ensemble_coeff": None, "kl_weight": 10.0}
    else:
        weights = random_tensors(diffusion_shapes(state, environment, action, len(cameras)))
        modes = {"VISUAL": "MEAN_STD", "STATE": "MIN_MAX", "ACTION": "MIN_MAX"}
        settings |= {**UNET, "normalization_mapping": modes, "vision_backbone": "resnet18", "crop_shape": [32, 32]}
        settings |= {"use_group_norm": True, "use_separate_rgb_encoder_per_camera": False, "beta_start": 0.0001}
        settings |= {"use_film_scale_modulation": True, "noise_scheduler_type": "DDIM", "num_train_timesteps": 50}
        settings |= {"beta_schedule": "squaredcos_cap_v2", "beta_end": 0.02, "prediction_type": "epsilon"}
        settings |= {"clip_sample": True, "clip_sample_range": 1.0, "num_inference_steps": 5, "resize_shape": None}
    (folder / "config.json").write_text(json.dumps(settings | changes))
    save_file(weights, folder / "model.safetensors")
    if statistics:
        write_statistics(folder, statistics)
    return weights


def write_statistics(folder: Path, statistics):
    numbers = {f"{key}.{name}": torch.tensor(v) for key, part in statistics.items() for name, v in part.items()}
    save_file({name: value.contiguous() for name, value in numbers.items()}, folder / "normalizer.safetensors")
    step = {"registry_name": "normalizer_processor", "config": {}, "state_file": "normalizer.safetensors"}
    (folder / "policy_preprocessor.json").write_text(json.dumps({"name": "policy_preprocessor", "steps": [step]}))


# What the policies compute


def apply(weights, name, values):
    return F.linear(values, weights[f"{name}.weight"], weights[f"{name}.bias"])


def attend(weights, name, query, key, value):
    attention = nn.MultiheadAttention(D, HEADS, batch_first=True)
    attention.load_state_dict({key: weights[f"{name}.{key}"] for key in attention.state_dict()})
    return attention(query, key, value)[0]


def normed(weights, name, values):
    return F.layer_norm(values, (D,), weights[f"{name}.weight"], weights[f"{name}.bias"])


def features_of(weights, prefix, places, pixels, normalise):
    """pixels (N, 3, H, W) -> (N, 512, h, w) by a ResNet-18."""

    def convolve(values, name, stride=1, padding=1):
        return F.conv2d(values, weights[f"{prefix}.{name}.weight"], stride=stride, padding=padding)

    values = normalise(convolve(pixels, places["conv1"], 2, 3), f"{prefix}.{places['bn1']}").relu()
    values = F.max_pool2d(values, 3, 2, 1)
    for stage in range(1, 5):
        for block in range(2):
            here, stride = f"{places[f'layer{stage}']}.{block}", 2 if stage > 1 and block == 0 else 1
            branch = normalise(convolve(values, f"{here}.conv1", stride), f"{prefix}.{here}.bn1").relu()
            branch = normalise(convolve(branch, f"{here}.conv2"), f"{prefix}.{here}.bn2")
            if stride == 2:
                values = normalise(convolve(values, f"{here}.downsample.0", 2, 0), f"{prefix}.{here}.downsample.1")
            values = (values + branch).relu()
    return values


def act_by_hand(weights, state, environment=None, pixels=()):
    """state (B, S), environment (B, E), pixels: (B, 3, H, W) of each camera, all normalised -> (B, C, A) for z = 0."""

    def frozen(values, name):
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(values, *(weights[f"{name}.{part}"] for part in names))

    latent = torch.zeros(len(state), LATENT)
    tokens = [apply(weights, "model.encoder_latent_input_proj", latent)]
    tokens.append(apply(weights, "model.encoder_robot_state_input_proj", state))
    if environment is not None:
        tokens.append(apply(weights, "model.encoder_env_state_input_proj", environment))
    tokens, positions = torch.stack(tokens, dim=1), weights["model.encoder_1d_feature_pos_embed.weight"]
    for image in pixels:
        cells = features_of(weights, "model.backbone", PLAIN, image, frozen)
        cells = F.conv2d(cells, *(weights[f"model.encoder_img_feat_input_proj.{p}"] for p in ("weight", "bias")))
        places = [
            [
                part(2 * math.pi * (index + 1) / count / 100**half)
                for index, count in place
                for half in (0, 1)
                for part in (math.sin, math.cos)
            ]
            for place in (
                [(y, cells.shape[2]), (x, cells.shape[3])] for y in range(cells.shape[2]) for x in range(cells.shape[3])
            )
        ]
        tokens = torch.cat((tokens, cells.flatten(2).transpose(1, 2)), dim=1)
        positions = torch.cat((positions, torch.tensor(places)))

    def feed(values, name):
        return apply(weights, f"{name}.linear2", apply(weights, f"{name}.linear1", values).relu())

    here, keys = "model.encoder.layers.0", tokens + positions
    memory = normed(weights, f"{here}.norm1", tokens + attend(weights, f"{here}.self_attn", keys, keys, tokens))
    memory = normed(weights, f"{here}.norm2", memory + feed(memory, here))
    here, queries = "model.decoder.layers.0", weights["model.decoder_pos_embed.weight"].expand(len(state), -1, -1)
    values = torch.zeros_like(queries)
    values = normed(weights, f"{here}.norm1", attend(weights, f"{here}.self_attn", queries, queries, values))
    found = attend(weights, f"{here}.multihead_attn", values + queries, memory + positions, memory)
    values = normed(weights, f"{here}.norm2", values + found)
    values = normed(weights, f"{here}.norm3", values + feed(values, here))
    return apply(weights, "model.action_head", normed(weights, "model.decoder.norm", values))


def keypoints_by_hand(weights, pixels):
    """pixels (N, 3, H, W), normalised and cropped -> (N, 2 · keypoints)."""
    encoder = "diffusion.rgb_encoder"

    def grouped(values, name):
        return F.group_norm(values, values.shape[1] // 16, weights[f"{name}.weight"], weights[f"{name}.bias"])

    cells = features_of(weights, f"{encoder}.backbone", NUMBERED, pixels, grouped)
    scores = F.conv2d(cells, weights[f"{encoder}.pool.nets.weight"], weights[f"{encoder}.pool.nets.bias"])
    share = scores.flatten(2).softmax(dim=-1).unflatten(2, scores.shape[2:])
    x, y = (torch.linspace(-1, 1, scores.shape[axis]) for axis in (3, 2))
    points = torch.stack(((share.sum(2) * x).sum(-1), (share.sum(3) * y).sum(-1)), dim=-1).flatten(1)
    return apply(weights, f"{encoder}.out", points).relu()


def unet_by_hand(weights, chunk, timestep, condition):
    """chunk (B, C, A), timestep (B,), condition (B, D) -> (B, C, A)."""
    unet, half = "diffusion.unet", UNET["diffusion_step_embed_dim"] // 2
    angles = timestep[:, None] * torch.tensor([10000 ** (-i / (half - 1)) for i in range(half)])
    time = apply(weights, f"{unet}.diffusion_step_encoder.1", torch.cat((angles.sin(), angles.cos()), dim=1))
    time = apply(weights, f"{unet}.diffusion_step_encoder.3", F.mish(time))
    condition = F.mish(torch.cat((time, condition), dim=1))

    def convolve(values, name, padding=1, stride=1):
        return F.conv1d(values, weights[f"{name}.weight"], weights[f"{name}.bias"], stride, padding)

    def unit(values, name):
        values = convolve(values, f"{name}.0")
        return F.mish(F.group_norm(values, 8, weights[f"{name}.1.weight"], weights[f"{name}.1.bias"]))

    def block(values, name):
        name = f"{unet}.{name}"
        scale, shift = apply(weights, f"{name}.cond_encoder.1", condition)[..., None].chunk(2, dim=1)
        branch = unit(scale * unit(values, f"{name}.conv1.block") + shift, f"{name}.conv2.block")
        residual = f"{name}.residual_conv"
        return branch + (convolve(values, residual, padding=0) if f"{residual}.weight" in weights else values)

    values = block(block(chunk.transpose(1, 2), "down_modules.0.0"), "down_modules.0.1")
    values = convolve(values, f"{unet}.down_modules.0.2", stride=2)
    skip = values = block(block(values, "down_modules.1.0"), "down_modules.1.1")
    values = block(block(values, "mid_modules.0"), "mid_modules.1")
    values = block(block(torch.cat((values, skip), dim=1), "up_modules.0.0"), "up_modules.0.1")
    name = f"{unet}.up_modules.0.2"
    values = F.conv_transpose1d(values, weights[f"{name}.weight"], weights[f"{name}.bias"], 2, 1)
    values = convolve(unit(values, f"{unet}.final_conv.0.block"), f"{unet}.final_conv.1", padding=0)
    return values.transpose(1, 2)
