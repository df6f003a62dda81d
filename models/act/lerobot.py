"""ACT from LeRobot's weights (lerobot 0.4, `policies/act`).

Shapes: D hidden dim.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from models.act.config import Config
from models.act.network import ACT, ACTConfig
from models.backbone import ARCHITECTURES
from models.lerobot_weights import Pairs, load_weights, merged, opened, refuse_dims, refuse_others, resnet_names
from storage.lerobot_policy import Policy

# Ours -> LeRobot's.
SETTINGS = {
    "hidden_dim": "dim_model",
    "num_heads": "n_heads",
    "feedforward_dim": "dim_feedforward",
    "encoder_layers": "n_encoder_layers",
    "decoder_layers": "n_decoder_layers",
    "cvae_layers": "n_vae_encoder_layers",
    "latent_dim": "latent_dim",
    "kl_weight": "kl_weight",
    "use_cvae": "use_vae",
    "dropout": "dropout",
    "pre_norm": "pre_norm",
    "backbone": "vision_backbone",
    "n_action_steps": "n_action_steps",
    "temporal_ensemble_coeff": "temporal_ensemble_coeff",
}
FREE = {"kl_weight", "dropout", "n_action_steps", "temporal_ensemble_coeff"}
ONLY = {"feedforward_activation": "relu", "replace_final_stride_with_dilation": False, "n_obs_steps": 1}


def build(config: Config, process: Any) -> ACT:
    """Build the network with the weights of the LeRobot policy at `model_name_or_path`.

    Raises:
        ValueError: it is no such policy, or keys or data do not fit it.
    """
    policy = opened(process, "act")
    refuse_others(policy, ONLY)
    states, environment = policy.inputs("STATE"), policy.inputs("ENV")
    if not states:
        raise ValueError(f"the policy in {policy.folder} reads no state of the robot, which this network needs")
    sizes = [sum(shape[0] for shape in group.values()) for group in (states, environment)]
    names = ", ".join([*states, *environment])
    refuse_dims(
        policy,
        config,
        {
            "state_dim": (sum(sizes), f"set dataset.state_keys to what {names} are, and dataset.n_obs_steps to 1"),
            "action_dim": (policy.action_dim, "choose dataset.action_key"),
            "chunk_size": (policy.settings["chunk_size"], "set dataset.chunk_size"),
            "past_actions": (0, "set dataset.past_actions"),
            "num_images": (len(policy.inputs("VISUAL")), "set dataset.cameras, and history_images_length to 1"),
        },
    )
    theirs = {ours: policy.settings[name] for ours, name in SETTINGS.items()} | {"env_state_dim": sizes[1]}
    theirs |= {"backbone_norm": "frozen"}
    config = merged(config, theirs, FREE, policy)
    model = ACT(ACTConfig(**vars(config)))
    load_weights(model, policy, names_of(config, policy), changes_of(config))
    return model


def names_of(config: Config, policy: Policy) -> Pairs:
    """Our modules and LeRobot's, of those whose tensors are equal."""
    if config.num_images:
        depths = ARCHITECTURES[config.backbone][2]
        yield from resnet_names("backbone.resnet", "model.backbone", depths, lambda name: name)
    for ours, theirs in (
        ("latent_projection", "encoder_latent_input_proj"),
        ("state_projection", "encoder_robot_state_input_proj"),
        ("env_state_projection", "encoder_env_state_input_proj"),
        ("image_projection.bias", "encoder_img_feat_input_proj.bias"),
        ("token_positions", "encoder_1d_feature_pos_embed"),
        ("queries", "decoder_pos_embed"),
        ("encoder.norm", "encoder.norm"),
        ("decoder.norm", "decoder.norm"),
        ("head", "action_head"),
        ("cvae_encoder.cls", "vae_encoder_cls_embed"),
        ("cvae_encoder.state_projection", "vae_encoder_robot_state_input_proj"),
        ("cvae_encoder.action_projection", "vae_encoder_action_input_proj"),
        ("cvae_encoder.posterior", "vae_encoder_latent_output_proj"),
        ("cvae_encoder.encoder.norm", "vae_encoder.norm"),
    ):
        yield ours, f"model.{theirs}"
    for ours, theirs, count, parts in layers_of(config):
        norms = [f"{part}_residual.norm" for part in (*parts, "feedforward")]
        for layer in range(count):
            here, there = f"{ours}.layers.{layer}", f"model.{theirs}.layers.{layer}"
            yield f"{here}.feedforward.0", f"{there}.linear1"
            yield f"{here}.feedforward.3", f"{there}.linear2"
            for number, norm in enumerate(norms, 1):
                yield f"{here}.{norm}", f"{there}.norm{number}"
            for attention, name in parts.values():
                yield f"{here}.{attention}.output", f"{there}.{name}.out_proj"


def layers_of(config: Config) -> list[tuple[str, str, int, dict[str, tuple[str, str]]]]:
    """Our stack, LeRobot's, its layers, and the attentions of each: our residual connection -> both names."""
    encoder = {"attention": ("attention", "self_attn")}
    decoder = {"self": ("self_attention", "self_attn"), "cross": ("cross_attention", "multihead_attn")}
    return [
        ("encoder", "encoder", config.encoder_layers, encoder),
        ("decoder", "decoder", config.decoder_layers, decoder),
        ("cvae_encoder.encoder", "vae_encoder", config.cvae_layers, encoder),
    ]


def changes_of(config: Config) -> dict[str, Any]:
    """Tensors that are divided or reshaped: the projections of attention, and a convolution of one pixel."""
    changes = {
        "model.encoder_img_feat_input_proj.weight": lambda weight: {"image_projection.weight": weight[:, :, 0, 0]}
    }
    for ours, theirs, count, parts in layers_of(config):
        for layer in range(count):
            for attention, name in parts.values():
                for kind in ("weight", "bias"):
                    place = f"{ours}.layers.{layer}.{attention}"
                    changes[f"model.{theirs}.layers.{layer}.{name}.in_proj_{kind}"] = divider(place, kind)
    return changes


def divider(place: str, kind: str) -> Any:
    def divide(projection: Tensor) -> dict[str, Tensor]:
        """(3·D, …) -> the query's, key's and value's, (D, …) each."""
        parts = projection.chunk(3)
        return {f"{place}.{name}.{kind}": part for name, part in zip(("query", "key", "value"), parts, strict=True)}

    return divide
