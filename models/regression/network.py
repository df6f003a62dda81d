"""A policy that predicts a chunk directly, by the networks of the diffusion and flow policies.

The comparison that shows what sampling adds. Shapes: B batch, C chunk size, A action dim, D condition.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.denoising_policy import DenoisingPolicy
from models.pretrained import pretrained_config
from models.regression.config import Config

RegressionConfig = pretrained_config(Config, "regression", "RegressionConfig", __name__)


class Regression(DenoisingPolicy):
    """The chunk is the network's output for an empty chunk at time 0."""

    config_class = RegressionConfig
    levels = 1

    def errors(self, actions: Tensor, noise: Tensor, level: Tensor, condition: Tensor) -> Tensor:
        """Absolute or squared error of the actions; noise and level have no part in it."""
        difference = self.sample(actions, condition) - actions
        return difference.abs() if self.config.loss == "l1" else difference.square()

    def sample(self, noise: Tensor, condition: Tensor) -> Tensor:
        """See `DenoisingPolicy.sample`; of the noise only the shape is used."""
        return self.network(torch.zeros_like(noise), noise.new_zeros(len(noise)), condition)
