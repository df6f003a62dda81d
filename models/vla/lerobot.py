"""SmolVLA from LeRobot's weights (lerobot 0.4, `policies/smolvla`)."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedConfig

from models.auto.network import new_settings
from models.lerobot_weights import Pairs, load_weights, merged, opened, refuse_others
from models.policy import require_dims
from models.vla.config import Config
from models.vla.loading import check_losses, filled_config, refuse_tokens, stored_settings
from models.vla.network import VLA
from storage.lerobot_policy import Policy

KIND = "smolvla"
ROTARY_BASE = 10_000.0  # of LeRobot's code, whatever the language model was trained with
# Ours -> LeRobot's.
SETTINGS = {
    "max_state_dim": "max_state_dim",
    "max_action_dim": "max_action_dim",
    "expert_width": "expert_width_multiplier",
    "sampling_steps": "num_steps",
}
ALWAYS = {
    "head": "flow",
    "state_as": "prefix",
    "prefix_attention": "bidirectional",
    "bidirectional_actions": False,
    "scale_embeddings": True,
    "image_resize": "pad",
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "time_alpha": 1.5,
}
FREE = {"sampling_steps", "n_action_steps", "time_alpha"}
ONLY = {
    "n_obs_steps": 1,
    "add_image_special_tokens": False,
    "adapt_to_pi_aloha": False,
    "min_period": 4e-3,
    "max_period": 4.0,
}
LANGUAGE = "model.vlm_with_expert.vlm"


def build(config: Config, process: Any) -> VLA:
    """Build the policy with the weights of the LeRobot policy at `model_name_or_path`.

    Sizes of states and actions are the data's: both are padded, and a policy is often trained further on another robot.

    Raises:
        ValueError: it is no such policy, its backbone's configuration is not found, or keys do not fit it.
    """
    require_dims(config)
    policy = opened(process, KIND)
    refuse_others(policy, ONLY)
    if (mode := policy.mode("VISUAL")) != "IDENTITY":
        raise ValueError(f"the policy in {policy.folder} normalises pixels by {mode}; only IDENTITY can be loaded")
    settings = backbone_settings(config, policy, process)
    config = merged(config, theirs(policy, config, settings), FREE, policy)
    refuse_tokens(config, settings.get_text_config())
    filled = filled_config(config, settings, process, str(policy.folder), None)
    check_losses(filled)
    model = VLA(filled)
    load_weights(model, policy, names_of(model), {}, unread=unread(model))
    return model


def backbone_settings(config: Config, policy: Policy, process: Any) -> PreTrainedConfig:
    """The configuration of the policy's vision-language model: that at its `vlm_model_name`, or `model.config`."""
    if config.config is not None:
        settings = new_settings(config.config, {})
    else:
        place, shown = policy.settings["vlm_model_name"], f"vlm_model_name of the policy in {policy.folder}"
        try:
            settings = stored_settings(place, process.cache_dir, process.trust_remote_code, shown)
        except ValueError as error:
            raise ValueError(f"{error}; or describe it by model.config") from None
    text = settings.get_text_config()
    text.rope_parameters = {"rope_type": "default", "rope_theta": ROTARY_BASE}
    for part in (settings, text, settings.vision_config):
        part.dtype = torch.float32
    return settings


def theirs(policy: Policy, config: Config, settings: PreTrainedConfig) -> dict[str, Any]:
    """The policy's values of our keys."""
    values, layers = policy.settings, settings.get_text_config().num_hidden_layers
    layers = values["num_vlm_layers"] if values["num_vlm_layers"] > 0 else layers
    every = values["self_attn_every_n_layers"]
    if values["num_expert_layers"] not in (-1, 0, layers) or every > 2:
        raise ValueError(
            f"the policy in {policy.folder} has num_expert_layers {values['num_expert_layers']} and "
            f"self_attn_every_n_layers {every}; only {layers} layers, all, none or half of them joint, can be loaded"
        )
    is_joint = "cross" not in values["attention_mode"] or every == 1
    size = values["resize_imgs_with_padding"]
    if config.num_images and (size is None or size[0] != size[1]):
        raise ValueError(f"the policy in {policy.folder} has images of {size}; only squares can be loaded")
    return {
        **ALWAYS,
        **{ours: values[name] for ours, name in SETTINGS.items()},
        "num_layers": layers,
        "attention": "joint" if is_joint else "alternating" if every == 2 else "cross",
        **({"image_size": size[0]} if config.num_images else {}),
        **({"n_action_steps": values["n_action_steps"]} if values["chunk_size"] == config.chunk_size else {}),
    }


def names_of(model: VLA) -> Pairs:
    """Our modules and LeRobot's."""
    expert = "model.vlm_with_expert.lm_expert"
    yield "backbone.vlm", f"{LANGUAGE}.model"
    yield "backbone.lm_head", f"{LANGUAGE}.lm_head"
    yield "state_proj", "model.state_proj"
    for name in ("layers", "norm"):
        yield f"action_head.expert.{name}", f"{expert}.{name}"
    for name in ("action_in_proj", "action_out_proj", "action_time_mlp_in", "action_time_mlp_out"):
        yield f"action_head.{name}", f"model.{name}"


def unread(model: VLA) -> tuple[str, ...]:
    """How names of weights begin that our network does not have, for nothing reads what they compute."""
    names = [] if hasattr(model.backbone, "lm_head") else [f"{LANGUAGE}.lm_head."]
    if not model.writes:
        names.append(f"{LANGUAGE}.model.text_model.layers.{len(model.backbone.language_model.layers) - 1}.mlp.")
    if not model.config.num_images:
        names += [f"{LANGUAGE}.model.{part}." for part in ("vision_model", "connector")]
    return tuple(names)
