"""The blocks of a GPT.

Shapes: B batch, T tokens, D embedding width, H query heads, K key and value heads, E = D / H numbers in a head.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from models.layers import Attention

NORM_EPS = 1e-5
ROPE_THETA = 10000.0


def norm_of(config: Any) -> nn.Module:
    """Return the norm of (…, D) that the configuration asks for."""
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.n_embd, eps=NORM_EPS)
    return nn.LayerNorm(config.n_embd, eps=NORM_EPS, bias=config.bias)


def inner_width(config: Any) -> int:
    """Return the inner width of a feed-forward block; SwiGLU's default has as many weights as GELU's."""
    if config.mlp_ratio is not None:
        return max(1, round(config.mlp_ratio * config.n_embd))
    return -(-8 * config.n_embd // (3 * 64)) * 64 if config.mlp == "swiglu" else 4 * config.n_embd


def rotation(positions: Tensor, head_size: int, theta: float) -> tuple[Tensor, Tensor]:
    """Compute cosines and sines of rotary positions: positions (…, T) -> (…, T, E / 2) each.

    Source: Su et al. 2021, arXiv:2104.09864, equation 34, with the halves of a head as pairs.
    """
    exponents = torch.arange(0, head_size, 2, device=positions.device, dtype=torch.float32) / head_size
    angles = positions[..., None].float() * theta**-exponents
    return angles.cos(), angles.sin()


def rotate(heads: Tensor, by: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate heads (B, H, T, E) by cosines and sines (T, E / 2) or (B, 1, T, E / 2)."""
    (cos, sin), (first, second) = by, heads.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(heads.dtype)


class HeadNorm(nn.RMSNorm):
    """RMS norm of each head, computed in the type of the heads: torch has no fast kernel for mixed types."""

    def forward(self, heads: Tensor) -> Tensor:
        """(B, H, T, E) -> (B, H, T, E)"""
        return F.rms_norm(heads, self.normalized_shape, self.weight.to(heads.dtype), self.eps)


class KeysAndValues:
    """Cache of the keys and values that one attention layer has computed so far."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def add(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values (B, K, T, E) of new tokens; return those of all tokens (B, K, S, E)."""
        if self.keys is not None:
            keys, values = torch.cat((self.keys, keys), dim=2), torch.cat((self.values, values), dim=2)
        self.keys, self.values = keys, values
        return keys, values


class CausalAttention(Attention):
    """Causal self-attention; one projection computes queries, keys and values."""

    def __init__(self, config: Any):
        nn.Module.__init__(self)  # one matrix instead of the parent's three
        self.num_heads, self.dropout = config.n_head, config.dropout
        self.num_kv_heads = config.n_kv_head or config.n_head
        self.head_size = config.n_embd // config.n_head
        width = self.num_kv_heads * self.head_size
        self.widths = config.n_embd, width, width
        self.qkv = nn.Linear(config.n_embd, sum(self.widths), bias=config.bias)
        self.output = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.output.ends_a_branch = True
        if config.qk_norm:
            self.query_norm = HeadNorm(self.head_size, eps=NORM_EPS)
            self.key_norm = HeadNorm(self.head_size, eps=NORM_EPS)

    def forward(
        self,
        tokens: Tensor,
        turned: tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
        past: KeysAndValues | None = None,
    ) -> Tensor:
        """tokens (B, T, D) -> (B, T, D).

        Args:
            turned: cosines and sines of the tokens' rotary positions.
            mask: (B, 1, T, T), true where a token attends to another; None: to itself and all before it.
            past: cache of the tokens before these, to which these are added. T is 1 unless the cache is empty.
        """
        query, key, value = (self._split(part) for part in self.qkv(tokens).split(self.widths, dim=-1))
        if hasattr(self, "query_norm"):
            query, key = self.query_norm(query), self.key_norm(key)
        if turned is not None:
            query, key = rotate(query, turned), rotate(key, turned)
        if past is not None:
            key, value = past.add(key, value)
        # A single token may attend to all keys.
        return self.output(self.attend(query, key, value, mask, is_causal=mask is None and query.shape[2] > 1))

    def _split(self, tokens: Tensor) -> Tensor:
        """(B, T, heads·E) -> (B, heads, T, E)"""
        return tokens.view(*tokens.shape[:2], -1, self.head_size).transpose(1, 2)


class MLP(nn.Module):
    """The feed-forward block: GELU, or SwiGLU (Shazeer 2020, arXiv:2002.05202) with gate and value in one matrix."""

    def __init__(self, config: Any):
        super().__init__()
        width = inner_width(config)
        self.gated, self.approximate = config.mlp == "swiglu", "tanh" if config.mlp == "gelu_tanh" else "none"
        self.up = nn.Linear(config.n_embd, 2 * width if self.gated else width, bias=config.bias)
        self.down = nn.Linear(width, config.n_embd, bias=config.bias)
        self.down.ends_a_branch = True

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        inner = self.up(tokens)
        if self.gated:
            gate, value = inner.chunk(2, dim=-1)
            return self.down(F.silu(gate) * value)
        return self.down(F.gelu(inner, approximate=self.approximate))


class Block(GradientCheckpointingLayer):
    """Attention and feed-forward, each with a norm before it and a residual connection."""

    def __init__(self, config: Any):
        super().__init__()
        self.attention_norm, self.attention = norm_of(config), CausalAttention(config)
        self.mlp_norm, self.mlp = norm_of(config), MLP(config)
        self.dropout = config.dropout

    def forward(
        self,
        tokens: Tensor,
        turned: tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
        past: KeysAndValues | None = None,
    ) -> Tensor:
        """Arguments and result as `CausalAttention`."""
        attended = self.attention(self.attention_norm(tokens), turned, mask, past)
        tokens = tokens + F.dropout(attended, self.dropout, self.training)
        return tokens + F.dropout(self.mlp(self.mlp_norm(tokens)), self.dropout, self.training)
