"""Configuration keys of the diffusion policy; importing this needs neither torch nor diffusers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from models.denoising import DenoisingConfig
from storage.config_keys import HARMLESS, TRAJECTORY, key


@dataclass
class Config(DenoisingConfig):
    """Keys of `model: {name: diffusion}`."""

    sampler: Literal["ddpm", "ddim"] = key(
        "ddim", "how a chunk is sampled: ddim skips most training steps and is deterministic", on_resume=HARMLESS
    )
    train_timesteps: int = key(100, "noise levels in training", ge=2)
    sampling_steps: int = key(
        10, "denoising steps to a chunk; with ddpm usually train_timesteps", ge=1, on_resume=HARMLESS
    )
    beta_schedule: Literal["squaredcos_cap_v2", "linear", "scaled_linear"] = key(
        "squaredcos_cap_v2", "how the noise grows over the levels", on_resume=TRAJECTORY
    )
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = key(
        "epsilon", "what the network predicts: the noise, the chunk, or the velocity", on_resume=TRAJECTORY
    )
    clip_sample: bool = key(
        True,
        "clip the predicted chunk to [-1, 1] at each step; needs actions normalised by min_max",
        on_resume=HARMLESS,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampling_steps > self.train_timesteps:
            raise ValueError(
                f"model.sampling_steps: {self.sampling_steps} is more than model.train_timesteps: "
                f"{self.train_timesteps}; lower it"
            )
