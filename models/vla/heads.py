"""Heads of a vision-language-action policy: from what the language model has read to a chunk of actions.

A head has `condition(context, state)`, computed once for a chunk, `action_errors(actions, condition)`, whose mean over
the steps that exist is the loss, and `sample_chunks(like, condition, generator)`.
Shapes: B batch, C chunk size, A action dim (padded), D width of the language model, W of the expert, Z state (padded).
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.chunk_networks import UNet
from models.diffusion.network import NoiseRemoval, make_scheduler
from models.flow.network import FlowMatching
from models.vla.backbone import Backbone
from models.vla.context import Context
from models.vla.expert import Expert, Geometry, Memory
from models.vla.tokens_head import TokensHead

PERIODS = (4e-3, 4.0)  # shortest and longest of the time's sines


def time_sinusoid(time: Tensor, width: int) -> Tensor:
    """time (B,) from 0 to 1 -> (B, W): sines, then cosines, of periods in a geometric series."""
    shortest, longest = PERIODS
    share = torch.linspace(0, 1, width // 2, dtype=torch.float64, device=time.device)
    angles = 2 * math.pi * time.double()[:, None] / (shortest * (longest / shortest) ** share)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


class ExpertHead(nn.Module):
    """What heads with an action expert share: the expert, the state before its actions, and the padding of actions."""

    def __init__(self, config: Any, backbone: Backbone):
        super().__init__()
        self.config = config
        self.padded_dim = config.max_action_dim or config.action_dim
        shape = Geometry.of(backbone.text_config, config.expert_width)
        starts = int(config.state_as == "suffix")
        layers = len(backbone.language_model.layers)
        self.expert = Expert(shape, layers, config.attention, not config.bidirectional_actions, starts)
        if starts:
            self.state_proj = nn.Linear(config.max_state_dim or config.state_dim, shape.width)
        self.action_out_proj = nn.Linear(shape.width, self.padded_dim)

    def condition(self, context: Context, state: Tensor) -> tuple[Memory, Tensor]:
        """The memory of the expert, and the state's token (B, 0 or 1, W)."""
        token = state.new_empty(len(state), 0, self.expert.shape.width)
        if self.config.state_as == "suffix":
            token = self.state_proj(state)[:, None]
        return self.expert.memory(context), token

    def decode(self, tokens: Tensor, condition: tuple[Memory, Tensor]) -> Tensor:
        """Action tokens (B, C, W) -> actions (B, C, A)."""
        memory, state = condition
        hidden = self.expert(torch.cat((state, tokens), dim=1), memory)
        return self.action_out_proj(hidden[:, state.shape[1] :])

    def padded(self, actions: Tensor) -> Tensor:
        return F.pad(actions, (0, self.padded_dim - actions.shape[-1]))


class FlowHead(FlowMatching, ExpertHead):
    """Flow matching by an action expert, with SmolVLA's projections of actions and time."""

    def __init__(self, config: Any, backbone: Backbone):
        super().__init__(config, backbone)
        width = self.expert.shape.width
        self.action_in_proj = nn.Linear(self.padded_dim, width)
        self.action_time_mlp_in = nn.Linear(2 * width, width)
        self.action_time_mlp_out = nn.Linear(width, width)

    def velocity(self, chunk: Tensor, time: Tensor, condition: tuple[Memory, Tensor]) -> Tensor:
        """chunk (B, C, A), time (B,) -> (B, C, A)."""
        tokens = self.action_in_proj(chunk)
        time = time_sinusoid(time, tokens.shape[-1]).to(tokens.dtype)[:, None].expand_as(tokens)
        tokens = self.action_time_mlp_out(F.silu(self.action_time_mlp_in(torch.cat((tokens, time), dim=-1))))
        return self.decode(tokens, condition)

    def action_errors(self, actions: Tensor, condition: tuple[Memory, Tensor]) -> Tensor:
        """Errors of the real dimensions alone; the padded ones have noise too, as in SmolVLA."""
        return super().action_errors(self.padded(actions), condition)[..., : actions.shape[-1]]

    def sample_chunks(self, like: Tensor, condition: tuple[Memory, Tensor], generator: Any = None) -> Tensor:
        return super().sample_chunks(self.padded(like), condition, generator)[..., : like.shape[-1]]


class RegressionHead(ExpertHead):
    """An action expert whose tokens are placeholders, one for each step; the error of an action is absolute.

    Source: Kim et al. 2025 (OpenVLA-OFT), arXiv:2502.19645, whose placeholders are tokens of the language model.
    """

    def __init__(self, config: Any, backbone: Backbone):
        super().__init__(config, backbone)
        self.placeholders = nn.Embedding(config.chunk_size, self.expert.shape.width)

    def action_errors(self, actions: Tensor, condition: tuple[Memory, Tensor]) -> Tensor:
        return (self.sample_chunks(actions, condition) - actions).abs()

    def sample_chunks(self, like: Tensor, condition: tuple[Memory, Tensor], generator: Any = None) -> Tensor:
        tokens = self.placeholders.weight.expand(len(like), -1, -1)
        return self.decode(tokens, condition)[..., : like.shape[-1]]


class DiffusionHead(NoiseRemoval, nn.Module):
    """A U-Net conditioned on the mean of the last hidden states, of tokens that exist, and perhaps on the state."""

    def __init__(self, config: Any, backbone: Backbone):
        super().__init__()
        self.config = config
        width = backbone.width
        if config.state_as == "suffix":
            width += config.max_state_dim or config.state_dim
        self.network = UNet(config, width)

    @functools.cached_property
    def scheduler(self):
        return make_scheduler(self.config)

    def condition(self, context: Context, state: Tensor) -> Tensor:
        """(B, D) or (B, D + Z)"""
        exists = context.mask[..., None]
        mean = ((context.hidden * exists).sum(dim=1) / exists.sum(dim=1)).to(state.dtype)
        return torch.cat((mean, state), dim=-1) if self.config.state_as == "suffix" else mean


HEADS = {"flow": FlowHead, "regression": RegressionHead, "diffusion": DiffusionHead, "tokens": TokensHead}
NEEDS_HIDDEN = ("diffusion", "tokens")  # read the last hidden states, the others only keys and values
