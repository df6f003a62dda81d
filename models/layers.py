"""Transformer blocks and positions that several networks use.

Shapes: B batch, S source tokens, T target tokens, D hidden dim, H query heads, K key heads, E = D / H.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer


def sinusoids(positions: Tensor, dim: int) -> Tensor:
    """Encode positions: (…) -> (…, dim), alternating sine and cosine of the angles position / 10000^(2i/dim).

    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.5.
    """
    assert dim % 2 == 0, dim
    frequencies = 10000 ** (-torch.arange(0, dim, 2, device=positions.device, dtype=torch.float32) / dim)
    angles = positions.float()[..., None] * frequencies
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)


def sequence_positions(length: int, dim: int, device: torch.device | None = None) -> Tensor:
    """Encode the positions 0 … length - 1: (length, dim)."""
    return sinusoids(torch.arange(length, device=device), dim)


def grid_positions(height: int, width: int, dim: int, device: torch.device | None = None) -> Tensor:
    """Encode the cells of a feature map: (height × width, dim), row by row; first half y, second half x.

    Rows and columns count from 1 and are scaled so that the last is 2π: every map size has the same range.
    Source: Carion et al. 2020 (DETR), arXiv:2005.12872, with its `normalize=True`.
    """
    rows = torch.arange(1, height + 1, device=device) * (2 * math.pi / height)
    columns = torch.arange(1, width + 1, device=device) * (2 * math.pi / width)
    y = sinusoids(rows, dim // 2)[:, None].expand(height, width, dim // 2)
    x = sinusoids(columns, dim // 2)[None].expand(height, width, dim // 2)
    return torch.cat((y, x), dim=-1).flatten(0, 1)


class Attention(nn.Module):
    """Multi-head attention with separate projections, so that LoRA can name each of them."""

    flash_attention: Callable[..., Tensor] | None = None

    def __init__(self, dim: int, num_heads: int, dropout: float):
        super().__init__()
        assert dim % num_heads == 0, (dim, num_heads)
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)

    def use_flash_attention(self) -> None:
        """Compute with flash-attention 2 from now on, where it can: half precision, no padding mask."""
        from flash_attn import flash_attn_func

        self.flash_attention = flash_attn_func

    def forward(self, query: Tensor, key: Tensor, value: Tensor, is_pad: Tensor | None = None) -> Tensor:
        """query (B or 1, T, D), key, value (B, S, D), is_pad (B, S) true for padding -> (B, T, D)."""
        query = self._heads(self.query(query)).expand(key.shape[0], -1, -1, -1)
        key, value = self._heads(self.key(key)), self._heads(self.value(value))
        mask = None if is_pad is None else ~is_pad[:, None, None, :]
        return self.output(self.attend(query, key, value, mask))

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """query (B, H, T, E), key, value (B, K, S, E), H a multiple of K -> (B, T, H·E).

        Args:
            mask: broadcastable to (B, H, T, S), true where a query attends to a key.
            is_causal: attend only to earlier tokens and the token itself.
        """
        dropout = self.dropout if self.training else 0.0
        if self.flash_attention is not None and mask is None and query.dtype in (torch.bfloat16, torch.float16):
            # Its order of axes is (B, T, H, E); it supports K < H without an option.
            heads = (tokens.transpose(1, 2) for tokens in (query, key, value))
            return self.flash_attention(*heads, dropout_p=dropout, causal=is_causal).flatten(2)
        options = {"is_causal": is_causal, "enable_gqa": query.shape[1] != key.shape[1]}
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, **options)
        return attended.transpose(1, 2).flatten(2)

    def _heads(self, tokens: Tensor) -> Tensor:
        """(B, S, D) -> (B, H, S, D / H)"""
        return tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class FeedForward(nn.Sequential):
    """Two linear layers with a ReLU between them; (…, D) -> (…, D)."""

    def __init__(self, dim: int, hidden_dim: int, dropout: float):
        layers = nn.Linear(dim, hidden_dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden_dim, dim)
        super().__init__(*layers)


class Residual(nn.Module):
    """The residual connection around a block, with its layer norm before the block or after the sum."""

    def __init__(self, dim: int, dropout: float, pre_norm: bool):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = pre_norm

    def forward(self, tokens: Tensor, block: Callable[[Tensor], Tensor]) -> Tensor:
        branch = self.dropout(block(self.norm(tokens) if self.pre_norm else tokens))
        # The block may have computed only the first tokens, or one batch row for all samples.
        tokens = tokens[:, : branch.shape[1]] + branch
        return tokens if self.pre_norm else self.norm(tokens)


class EncoderLayer(GradientCheckpointingLayer):
    """Self-attention and feed-forward. As in DETR, positions are added to queries and keys of every layer."""

    def __init__(self, dim: int, num_heads: int, feedforward_dim: int, dropout: float, pre_norm: bool):
        super().__init__()
        self.attention = Attention(dim, num_heads, dropout)
        self.feedforward = FeedForward(dim, feedforward_dim, dropout)
        self.attention_residual = Residual(dim, dropout, pre_norm)
        self.feedforward_residual = Residual(dim, dropout, pre_norm)

    def forward(
        self, tokens: Tensor, positions: Tensor, is_pad: Tensor | None = None, num_outputs: int | None = None
    ) -> Tensor:
        """tokens (B, S, D), positions (S, D), is_pad (B, S) -> (B, S, D).

        With `num_outputs` only the first tokens are computed: the same values at less cost.
        """

        def attend(x: Tensor) -> Tensor:
            keys = x + positions
            return self.attention(keys[:, :num_outputs], keys, x, is_pad)

        return self.feedforward_residual(self.attention_residual(tokens, attend), self.feedforward)


class DecoderLayer(GradientCheckpointingLayer):
    """Self-attention among targets, attention to the memory, feed-forward; positions as in `EncoderLayer`."""

    def __init__(self, dim: int, num_heads: int, feedforward_dim: int, dropout: float, pre_norm: bool):
        super().__init__()
        self.self_attention = Attention(dim, num_heads, dropout)
        self.cross_attention = Attention(dim, num_heads, dropout)
        self.feedforward = FeedForward(dim, feedforward_dim, dropout)
        self.self_residual = Residual(dim, dropout, pre_norm)
        self.cross_residual = Residual(dim, dropout, pre_norm)
        self.feedforward_residual = Residual(dim, dropout, pre_norm)

    def forward(
        self,
        targets: Tensor,
        memory: Tensor,
        positions: Tensor,
        memory_positions: Tensor,
        memory_is_pad: Tensor | None = None,
    ) -> Tensor:
        """targets (B, T, D), memory (B, S, D), positions (T, D), memory_positions (S, D) -> (B, T, D).

        Targets that are equal for all samples may be given once, (1, T, D). No target attends to tokens of the memory
        that memory_is_pad (B, S) marks.
        """

        def attend_self(x: Tensor) -> Tensor:
            return self.self_attention(x + positions, x + positions, x)

        def attend_memory(x: Tensor) -> Tensor:
            return self.cross_attention(x + positions, memory + memory_positions, memory, memory_is_pad)

        targets = self.self_residual(targets, attend_self)
        targets = self.cross_residual(targets, attend_memory)
        return self.feedforward_residual(targets, self.feedforward)


class Encoder(nn.Module):
    """A stack of encoder layers; with `pre_norm` a final layer norm, because nothing else bounds the output."""

    def __init__(self, num_layers: int, dim: int, num_heads: int, feedforward_dim: int, dropout: float, pre_norm: bool):
        super().__init__()
        self.layers = nn.ModuleList(
            EncoderLayer(dim, num_heads, feedforward_dim, dropout, pre_norm) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim) if pre_norm else nn.Identity()

    def forward(
        self, tokens: Tensor, positions: Tensor, is_pad: Tensor | None = None, num_outputs: int | None = None
    ) -> Tensor:
        """Arguments and result as `EncoderLayer`."""
        for layer in self.layers[:-1]:
            tokens = layer(tokens, positions, is_pad)
        return self.norm(self.layers[-1](tokens, positions, is_pad, num_outputs))
