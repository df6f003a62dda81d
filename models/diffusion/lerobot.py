"""The diffusion policy from LeRobot's weights (lerobot 0.4, `policies/diffusion`).

Shapes: T time encoding, D condition.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.backbone import ARCHITECTURES
from models.diffusion.config import Config
from models.diffusion.network import Diffusion, DiffusionConfig
from models.lerobot_weights import Pairs, load_weights, merged, opened, refuse_dims, refuse_others, resnet_names
from storage.lerobot_policy import Policy

# Ours -> LeRobot's.
SETTINGS = {
    "train_timesteps": "num_train_timesteps",
    "beta_schedule": "beta_schedule",
    "prediction_type": "prediction_type",
    "clip_sample": "clip_sample",
    "kernel_size": "kernel_size",
    "group_norm_groups": "n_groups",
    "film_scale": "use_film_scale_modulation",
    "time_dim": "diffusion_step_embed_dim",
    "keypoints": "spatial_softmax_num_keypoints",
    "backbone": "vision_backbone",
    "backbone_per_camera": "use_separate_rgb_encoder_per_camera",
    "n_action_steps": "n_action_steps",
}
FREE = {"sampler", "sampling_steps", "clip_sample", "n_action_steps", "crop_size"}
# Eight groups are fixed in the last block of its unet.
ONLY = {"beta_start": 0.0001, "beta_end": 0.02, "clip_sample_range": 1.0, "n_groups": 8}
# Where torchvision's modules are in the sequence that LeRobot makes of a ResNet.
PLACES = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}


def build(config: Config, process: Any) -> Diffusion:
    """Build the network with the weights of the LeRobot policy at `model_name_or_path`.

    Raises:
        ValueError: it is no such policy, or keys or data do not fit it.
    """
    policy = opened(process, "diffusion")
    refuse_others(policy, ONLY)
    settings, cameras = policy.settings, len(policy.inputs("VISUAL"))
    observations, states = settings["n_obs_steps"], policy.inputs("STATE", "ENV")
    width = sum(shape[0] for shape in states.values())
    refuse_dims(
        policy,
        config,
        {
            "state_dim": (
                observations * width,
                f"set dataset.n_obs_steps to {observations}, and dataset.state_keys to what {', '.join(states)} are",
            ),
            "action_dim": (policy.action_dim, "choose dataset.action_key"),
            "chunk_size": (settings["horizon"], "set dataset.chunk_size"),
            "past_actions": (observations - 1, "set dataset.past_actions"),
            "num_images": (cameras * observations, f"set dataset.cameras to {cameras} cameras"),
        },
    )
    theirs = {ours: settings[name] for ours, name in SETTINGS.items()}
    theirs |= {"sampler": settings["noise_scheduler_type"].lower(), "unet_channels": list(settings["down_dims"])}
    theirs |= {"sampling_steps": settings["num_inference_steps"] or settings["num_train_timesteps"]}
    theirs |= {"network": "unet", "time_encoding": "halves"}
    if cameras:
        theirs |= {"backbone_norm": "group" if settings["use_group_norm"] else "batch", "pooling_projection": True}
        theirs |= {
            "image_pooling": "spatial_softmax",
            "crop_size": settings["crop_shape"] and [*settings["crop_shape"]],
        }
    config = merged(config, theirs, FREE, policy)
    model = Diffusion(DiffusionConfig(**vars(config)))
    load_weights(model, policy, names_of(config), changes_of(config, columns_of(policy, config)))
    return model


def names_of(config: Config) -> Pairs:
    """Our modules and LeRobot's, of those whose tensors are equal."""
    unet = "diffusion.unet"
    yield "network.time.0", f"{unet}.diffusion_step_encoder.1"
    yield "network.time.2", f"{unet}.diffusion_step_encoder.3"
    yield "network.output.0", f"{unet}.final_conv.0.block"
    yield "network.output.1", f"{unet}.final_conv.1"
    for ours, theirs in blocks_of(config):
        for own, other in (("first", "conv1.block"), ("second", "conv2.block"), ("skip", "residual_conv")):
            yield f"{ours}.{own}", f"{theirs}.{other}"
        yield f"{ours}.modulation.1.bias", f"{theirs}.cond_encoder.1.bias"
    for direction in ("down", "up"):
        for stage in range(len(config.unet_channels)):
            yield f"network.{direction}.{stage}.resize", f"{unet}.{direction}_modules.{stage}.2"
    cameras = [f".{number}" for number in range(config.num_cameras)] if config.backbone_per_camera else [""]
    for camera in cameras if config.num_images else ():
        encoder = f"diffusion.rgb_encoder{camera}"
        depths = ARCHITECTURES[config.backbone][2]
        yield from resnet_names(f"observation.backbone{camera}.resnet", f"{encoder}.backbone", depths, PLACES.get)
        yield f"observation.pooling{camera}.score", f"{encoder}.pool.nets"
        yield f"observation.projection{camera}.0", f"{encoder}.out"


def blocks_of(config: Config) -> Pairs:
    """The blocks that the condition modulates."""
    unet = "diffusion.unet"
    for direction, stages in (("down", len(config.unet_channels)), ("up", len(config.unet_channels) - 1)):
        for stage in range(stages):
            yield f"network.{direction}.{stage}.first", f"{unet}.{direction}_modules.{stage}.0"
            yield f"network.{direction}.{stage}.second", f"{unet}.{direction}_modules.{stage}.1"
    for number in range(2):
        yield f"network.middle.{number}", f"{unet}.mid_modules.{number}"


def columns_of(policy: Policy, config: Config) -> Tensor:
    """(D,): which number of LeRobot's condition each of ours is.

    LeRobot: for each observation its state, the keypoints of each camera, the environment's state. Ours: all states (an
    observation's with the environment's), then camera by camera the keypoints of each observation.
    """
    observations, image = policy.settings["n_obs_steps"], 2 * config.keypoints
    robot, environment = (sum(shape[0] for shape in policy.inputs(kind).values()) for kind in ("STATE", "ENV"))
    cameras = len(policy.inputs("VISUAL"))
    whole = torch.arange(observations * (robot + cameras * image + environment)).unflatten(0, (observations, -1))
    states, images, environments = whole.split([robot, cameras * image, environment], dim=1)
    images = images.unflatten(1, (cameras, image)).transpose(0, 1) if cameras else images
    return torch.cat((torch.cat((states, environments), dim=1).flatten(), images.flatten()))


def changes_of(config: Config, columns: Tensor) -> dict[str, Any]:
    """The weights that read the condition: after those for the time, their columns have another order."""
    order = torch.cat((torch.arange(config.time_dim), config.time_dim + columns))
    return {
        f"{theirs}.cond_encoder.1.weight": reorder(f"{ours}.modulation.1.weight", order)
        for ours, theirs in blocks_of(config)
    }


def reorder(name: str, order: Tensor) -> Any:
    return lambda weight: {name: weight[:, order]}
