"""Token corruption: inputs of a training step are replaced by other ids, in blocks of time steps; targets stay."""

from __future__ import annotations

import torch
from torch import Tensor

from models.signal_gpt.config import TokenCorruption


def corrupted(input_ids: Tensor, settings: TokenCorruption, vocab_size: int) -> Tensor:
    """Ids (N, L) with some replaced by ids drawn uniformly from all others, by torch's global generator.

    The probability of step s of S is p_start · (p_end / p_start)^(s / (S - 1)). The steps of a block share one draw, so
    that they are replaced together; the marginal probability of each is exact.
    """
    rows, length = input_ids.shape
    steps = -(-length // settings.tokens_per_step)
    share = torch.linspace(0, 1, steps, device=input_ids.device)
    probability = settings.p_start * (settings.p_end / settings.p_start) ** share  # (S,)
    blocks = -(-steps // settings.block_len_steps)
    drawn = torch.rand(rows, blocks, device=input_ids.device).repeat_interleave(settings.block_len_steps, dim=1)
    replaced = (drawn[:, :steps] < probability).repeat_interleave(settings.tokens_per_step, dim=1)[:, :length]
    others = (input_ids + torch.randint_like(input_ids, 1, vocab_size)) % vocab_size
    return torch.where(replaced, others, input_ids)
