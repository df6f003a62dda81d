"""A policy by flow matching: a network predicts the velocity that leads from noise to a chunk of actions.

Source: Lipman et al. 2023, arXiv:2210.02747; its times and steps as in pi0 (Black et al. 2024, arXiv:2410.24164).
Shapes: B batch, C chunk size, A action dim, D condition.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from models.denoising_policy import DenoisingPolicy, NoisyChunks
from models.flow.config import Config
from models.pretrained import pretrained_config

FlowConfig = pretrained_config(Config, "flow", "FlowConfig", __name__)

TIME_SCALE = 1000  # the time's encoding expects steps, as those of diffusion
EARLIEST = 0.001  # time 0 is the chunk itself, where there is nothing to learn


class FlowMatching(NoisyChunks):
    """The point at time t is t · noise + (1 - t) · actions; the network predicts its velocity, noise - actions."""

    def velocity(self, chunk: Tensor, time: Tensor, condition: Any) -> Tensor:
        """chunk (B, C, A), time (B,) from 0 to 1 -> (B, C, A)."""
        raise NotImplementedError

    def errors(self, actions: Tensor, noise: Tensor, level: Tensor, condition: Any) -> Tensor:
        """Squared error of the velocity; see `NoisyChunks.errors`."""
        # The inverse of the distribution function of Beta(alpha, 1).
        time = EARLIEST + (1 - EARLIEST) * level ** (1 / self.config.time_alpha)
        weight = time.to(actions.dtype)[:, None, None]
        chunk = weight * noise + (1 - weight) * actions
        return (self.velocity(chunk, time, condition) - (noise - actions)).square()

    def sample(self, noise: Tensor, condition: Any) -> Tensor:
        """Integrate the velocity from time 1 to 0; see `NoisyChunks.sample`."""
        steps, chunk = self.config.sampling_steps, noise
        for step in range(steps):
            time = noise.new_full((len(noise),), 1 - step / steps)
            chunk = chunk - self.velocity(chunk, time, condition) / steps
        return chunk


class Flow(FlowMatching, DenoisingPolicy):
    """Flow matching by a network over the chunk, the time and the condition."""

    config_class = FlowConfig

    def velocity(self, chunk: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """chunk (B, C, A), time (B,), condition (B, D) -> (B, C, A)."""
        return self.network(chunk, TIME_SCALE * time, condition)
