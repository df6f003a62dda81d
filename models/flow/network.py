"""A policy by flow matching: a network predicts the velocity that leads from noise to a chunk of actions.

Source: Lipman et al. 2023, arXiv:2210.02747; its times and steps as in pi0 (Black et al. 2024, arXiv:2410.24164).
Guidance by the previous chunk: real-time chunking (Black et al. 2025, arXiv:2506.07339), whose time is 1 minus ours.
Shapes: B batch, C chunk size, A action dim, D condition, R actions of the previous chunk that are left.
"""

from __future__ import annotations

import math
from typing import Any

import torch
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

    def sample(self, noise: Tensor, condition: Any, previous: Tensor | None = None) -> Tensor:
        """Integrate the velocity from time 1 to 0; see `NoisyChunks.sample`.

        Args:
            previous: (R, A): lead the chunk to these actions.
        """
        steps, chunk = self.config.sampling_steps, noise
        for step in range(steps):
            time = noise.new_full((len(noise),), 1 - step / steps)
            if previous is None:
                velocity = self.velocity(chunk, time, condition)
            else:
                velocity = self.guided_velocity(chunk, time, condition, previous.to(noise))
            chunk = chunk - velocity / steps
        return chunk

    def guided_velocity(self, chunk: Tensor, time: Tensor, condition: Any, previous: Tensor) -> Tensor:
        """The velocity, corrected along the gradient of the distance to the previous chunk (equations 2 to 4)."""
        past, rest = self.config.past_actions or 0, len(previous)
        target, mask = torch.zeros_like(chunk), chunk.new_zeros(chunk.shape[1], 1)
        target[:, past : past + rest] = previous
        mask[past : past + rest, 0] = soft_mask(rest, self.config.inference_delay).to(mask)
        with torch.enable_grad():
            chunk = chunk.detach().requires_grad_()
            velocity = self.velocity(chunk, time, condition)
            estimate = chunk - time[0] * velocity  # of the actions, in one step
            error = ((target - estimate) * mask).detach()
            (correction,) = torch.autograd.grad(estimate, chunk, error)
        now = time[0].item()
        weight = self.config.guidance_weight
        if now < 1:
            weight = min(weight, ((1 - now) ** 2 + now**2) / (now * (1 - now)))
        return velocity.detach() - weight * correction


class Flow(FlowMatching, DenoisingPolicy):
    """Flow matching by a network over the chunk, the time and the condition."""

    config_class = FlowConfig

    def velocity(self, chunk: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """chunk (B, C, A), time (B,), condition (B, D) -> (B, C, A)."""
        return self.network(chunk, TIME_SCALE * time, condition)

    def guide(self) -> dict[str, Tensor]:
        """The actions (R, A) that are left of the previous chunk, if they are to guide the next."""
        is_guided = self.config.guidance_weight is not None and self._plan.plan is not None
        return {"previous": self._plan.plan} if is_guided else {}


def soft_mask(rest: int, delay: int) -> Tensor:
    """Weights (R,) of the previous chunk's actions: 1 during the delay, then falling exponentially (equation 5)."""
    share = (rest - torch.arange(rest)) / (rest - delay + 1)
    return torch.where(torch.arange(rest) < delay, 1.0, share * torch.expm1(share) / (math.e - 1))
