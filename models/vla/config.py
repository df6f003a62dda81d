"""Configuration keys of vision-language-action policies; importing this needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from models.denoising import check_time_dim, check_unet
from models.policy import ChunkConfig
from storage.config_keys import HARMLESS, IMPOSSIBLE, TRAJECTORY, key

of_flow = partial(key, needs="head", needs_value=("flow",))
of_diffusion = partial(key, needs="head", needs_value=("diffusion",))
of_expert = partial(key, needs="head", needs_value=("flow", "regression"))


@dataclass
class Config(ChunkConfig):
    """Keys of `model: {name: vla}`; the defaults are SmolVLA's (arXiv:2506.01844), but for the scaled embeddings."""

    vocab_size: int | None = key(None, "tokens of the tokenizer; filled in from the data", ge=1)
    eos_token_id: int | None = key(None, "the token that ends a text; filled in from the data", ge=0)
    target_tokens: int | None = key(
        None, "most tokens of a text generated before acting; 0: none; filled in from the data", ge=0
    )

    config: dict[str, Any] | None = key(
        None,
        "model_type and its fields, as in a config.json, of a new backbone with random weights; with a causal language "
        "model as model_name_or_path: of the backbone around it; null: the one at model_name_or_path",
    )
    num_layers: int | None = key(None, "first layers of the language model that are kept; null: all", ge=1)
    prefix_attention: Literal["bidirectional", "causal"] = key(
        "bidirectional", "how images and prompt attend to one another; causal: as the language model was trained"
    )
    scale_embeddings: bool = key(
        False, "multiply the embeddings of images and words by the square root of their width, as SmolVLA does"
    )
    image_size: int | None = key(
        None, "pixels of a side of the images that the backbone sees; null: as its configuration says", ge=1
    )
    image_resize: Literal["stretch", "pad"] = key(
        "pad", "pad: keep the aspect ratio, and pad with black at the left and the top; stretch: do not"
    )
    image_mean: list[float] | None = key(
        None, "of the channels, for pixels from 0 to 1; null: that of the backbone's preprocessor, else 0.5"
    )
    image_std: list[float] | None = key(
        None, "of the channels, for pixels from 0 to 1; null: that of the backbone's preprocessor, else 0.5"
    )

    head: Literal["flow", "diffusion", "regression", "tokens"] = key(
        "flow",
        "flow: an action expert that attends to the language model's keys and values, trained by flow matching; "
        "diffusion: a unet conditioned on the mean of the last hidden states; regression: the expert predicts the "
        "actions directly, trained by their absolute error; tokens: the language model writes the actions as tokens",
    )
    state_as: Literal["prefix", "suffix"] = key(
        "prefix",
        "prefix: the state is a token of the language model, as in SmolVLA; suffix: it goes to the head, as in pi0",
    )
    max_state_dim: int | None = key(None, "numbers that the state is padded to with zeros; null: its own", ge=1)
    max_action_dim: int | None = of_expert(
        None, "numbers that an action is padded to with zeros, without loss on them; null: its own", ge=1
    )
    detach_backbone: bool = key(
        False, "no gradient of the action loss reaches the backbone, which learns from its texts alone"
    )

    action_tokenizer: str | dict[str, Any] = key(
        "bins",
        "actions as tokens: bins (256 for each number, on the last tokens of the vocabulary), or the file of FAST that "
        "prepare.py --action_tokenizer has trained",
        needs="head",
        needs_value=("tokens",),
        is_path=True,
        on_resume=IMPOSSIBLE,
    )
    expert_width: float = of_expert(0.75, "width of the expert, as a share of the language model's", gt=0)
    attention: Literal["joint", "cross", "alternating"] = of_expert(
        "alternating",
        "joint: actions attend to one another and to the language model's keys; cross: to projections of those keys "
        "alone; alternating: joint in the first layer, cross in the second, and so on",
    )
    bidirectional_actions: bool = of_expert(False, "actions attend to later actions too")
    sampling_steps: int = key(
        10,
        "steps from noise to a chunk",
        ge=1,
        on_resume=HARMLESS,
        needs="head",
        needs_value=("flow", "diffusion"),
    )
    time_alpha: float = of_flow(
        1.5, "time in training is drawn from Beta(time_alpha, 1), 1 being pure noise", gt=0, on_resume=TRAJECTORY
    )

    sampler: Literal["ddpm", "ddim"] = of_diffusion(
        "ddim", "how a chunk is sampled: ddim skips most training steps and is deterministic", on_resume=HARMLESS
    )
    train_timesteps: int = of_diffusion(100, "noise levels in training", ge=2)
    beta_schedule: Literal["squaredcos_cap_v2", "linear", "scaled_linear"] = of_diffusion(
        "squaredcos_cap_v2", "how the noise grows over the levels", on_resume=TRAJECTORY
    )
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = of_diffusion(
        "epsilon", "what the network predicts: the noise, the chunk, or the velocity", on_resume=TRAJECTORY
    )
    clip_sample: bool = of_diffusion(
        True, "clip the predicted chunk to [-1, 1] at each step; needs min_max actions", on_resume=HARMLESS
    )
    unet_channels: list[int] = of_diffusion([256, 512, 1024], "channels of each resolution of the unet")
    kernel_size: int = of_diffusion(5, "of the unet's convolutions along the chunk; odd", ge=1)
    group_norm_groups: int = of_diffusion(8, "groups of the unet's norms; divides every entry of unet_channels", ge=1)
    film_scale: bool = of_diffusion(True, "the condition scales and shifts the unet's channels; false: it shifts them")
    time_dim: int = of_diffusion(128, "numbers that encode the time of the unet; even", ge=2)
    time_encoding: Literal["alternating", "halves"] = of_diffusion(
        "alternating", "sines and cosines of the time: see the diffusion policy"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.config is not None and not isinstance(self.config.get("model_type"), str):
            raise ValueError(
                "model.config needs a model_type (smolvlm, qwen2_vl …): it says which architecture the fields are of"
            )
        for name in ("image_mean", "image_std"):
            if (value := getattr(self, name)) is not None and len(value) != 3:
                raise ValueError(f"model.{name}: {value} is not one number for each of red, green and blue")
        for name, size in (("max_state_dim", "state_dim"), ("max_action_dim", "action_dim")):
            most, own = getattr(self, name), getattr(self, size)
            if None not in (most, own) and own > most:
                raise ValueError(f"model.{name}: {most} is less than the data's {size} {own}; raise it")
        if self.head == "diffusion":
            check_unet(self)
            check_time_dim(self)
            if self.sampling_steps > self.train_timesteps:
                raise ValueError(
                    f"model.sampling_steps: {self.sampling_steps} is more than model.train_timesteps: "
                    f"{self.train_timesteps}; lower it"
                )
        if self.detach_backbone and self.head == "tokens":
            raise ValueError(
                "model.detach_backbone: the backbone itself writes the actions (model.head: tokens), and would not "
                "learn them; set it to false"
            )
        if self.detach_backbone and self.state_as == "prefix":
            raise ValueError(
                "model.detach_backbone: the state would be a token of the language model, which then learns nothing "
                "for the actions; set model.state_as to suffix"
            )
