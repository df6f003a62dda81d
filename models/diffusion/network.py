"""Diffusion Policy (Chi et al. 2023, arXiv:2303.04137): a network removes noise from a chunk of actions, step by step.

The noise levels and the sampling steps are those of the package diffusers.
Shapes: B batch, C chunk size, A action dim, D condition.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from models.denoising_policy import DenoisingPolicy, NoisyChunks
from models.diffusion.config import Config
from models.pretrained import pretrained_config

DiffusionConfig = pretrained_config(Config, "diffusion", "DiffusionConfig", __name__)


def make_scheduler(config: DiffusionConfig):
    """The diffusers scheduler of a configuration; ValueError if the package is missing."""
    try:
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    except ImportError as error:
        raise ValueError(f"model.name: diffusion needs diffusers ({error}): pip install -e .[diffusion]") from error
    scheduler = {"ddpm": DDPMScheduler, "ddim": DDIMScheduler}[config.sampler]
    return scheduler(
        num_train_timesteps=config.train_timesteps,
        beta_schedule=config.beta_schedule,
        prediction_type=config.prediction_type,
        clip_sample=config.clip_sample,
    )


class NoiseRemoval(NoisyChunks):
    """`network(chunk, timestep, condition)` sees a noisy chunk and predicts its noise (or `prediction_type`)."""

    @functools.cached_property
    def scheduler(self):
        return make_scheduler(self.config)  # not in __init__, which transformers also runs without memory for tensors

    def errors(self, actions: Tensor, noise: Tensor, level: Tensor, condition: Tensor) -> Tensor:
        """Squared error of what the network predicts; see `NoisyChunks.errors`."""
        timestep = (level * self.config.train_timesteps).long()
        chunk = self.scheduler.add_noise(actions, noise, timestep)
        predicted = self.network(chunk, timestep, condition)
        if self.config.prediction_type == "epsilon":
            target = noise
        elif self.config.prediction_type == "sample":
            target = actions
        else:
            target = self.scheduler.get_velocity(actions, noise, timestep)
        return (predicted - target).square()

    def sample(self, noise: Tensor, condition: Tensor) -> Tensor:
        """Remove the noise in `sampling_steps` steps; see `NoisyChunks.sample`."""
        self.scheduler.set_timesteps(self.config.sampling_steps)
        # A generator of its own for each sample: the noise that ddpm adds does not depend on the batch.
        generators = [torch.Generator().manual_seed(0) for _ in noise]
        options = {"generator": generators} if self.config.sampler == "ddpm" else {}
        chunk = noise
        for timestep in self.scheduler.timesteps:
            predicted = self.network(chunk, timestep.to(noise.device).expand(len(noise)), condition)
            chunk = self.scheduler.step(predicted, timestep, chunk, **options).prev_sample
        return chunk


class Diffusion(NoiseRemoval, DenoisingPolicy):
    """Noise is removed by a network over the chunk, the time and the condition."""

    config_class = DiffusionConfig
