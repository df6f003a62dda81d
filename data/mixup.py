"""MixUp (arXiv:1710.09412) of any kind of data: the share that a batch keeps."""

from __future__ import annotations

import numpy as np
import torch


def beta(alpha: float, generator: torch.Generator) -> float:
    """One number of the Beta(alpha, alpha) distribution, on the host."""
    seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
    return float(np.random.default_rng(seed).beta(alpha, alpha))
