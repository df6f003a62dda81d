"""Configuration keys of the flow policy; importing this needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from models.denoising import DenoisingConfig
from storage.config_keys import HARMLESS, TRAJECTORY, key


@dataclass
class Config(DenoisingConfig):
    """Keys of `model: {name: flow}`."""

    sampling_steps: int = key(10, "Euler steps from noise to a chunk", ge=1, on_resume=HARMLESS)
    time_alpha: float = key(
        1.5,
        "time in training is drawn from Beta(time_alpha, 1), 1 being pure noise: above 1 more often near the noise; "
        "1: uniformly",
        gt=0,
        on_resume=TRAJECTORY,
    )
    guidance_weight: float | None = key(
        None,
        "with inference_delay: most weight with which sampling leads a chunk to the remaining actions of the "
        "previous one (arXiv:2506.07339, there 5); null: it is sampled without regard to them",
        gt=0,
        on_resume=HARMLESS,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.guidance_weight is not None and self.inference_delay is None:
            raise ValueError(
                f"model.guidance_weight: {self.guidance_weight} guides a chunk by the previous one, which goes on only "
                "with model.inference_delay; set it (0 for a chunk that takes no time), or guidance_weight to null"
            )
