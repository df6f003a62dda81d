"""The action expert: a narrow transformer whose tokens attend to a language model's keys and values.

Source: Shukor et al. 2025 (SmolVLA), arXiv:2506.01844, section 3.1; joint attention as in pi0, arXiv:2410.24164.
Shapes: B batch, T action tokens, S tokens of the context, W width, H query heads, K key heads, E their size.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from models.vla.context import Context, attention_mask

FEED_FORWARD_MULTIPLE = 256


class Geometry(NamedTuple):
    """What an expert shares with the language model."""

    width: int
    heads: int
    key_heads: int
    head_dim: int
    norm_eps: float

    @classmethod
    def of(cls, text: Any, share: float) -> Geometry:
        """The geometry of an expert of a `share` of the width of the language model with configuration `text`."""
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        key_heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        return cls(int(text.hidden_size * share), text.num_attention_heads, key_heads, head_dim, text.rms_norm_eps)

    @property
    def feed_forward_width(self) -> int:
        """As SmolVLA: two thirds of four times the width, rounded up."""
        width = 4 * int(2 * self.width / 3)
        return FEED_FORWARD_MULTIPLE * -(-width // FEED_FORWARD_MULTIPLE)


def rotate(heads: Tensor, angles: Tensor) -> Tensor:
    """Rotate heads (B, H, T, E) by angles (B, T, E / 2), each of which turns numbers i and i + E / 2."""
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    first, second = heads.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(heads.dtype)


class ExpertAttention(nn.Module):
    """Attention of action tokens: with their own keys beside the context's, or to projections of the context's."""

    def __init__(self, shape: Geometry, is_cross: bool):
        super().__init__()
        self.shape, self.is_cross = shape, is_cross
        keys = shape.key_heads * shape.head_dim
        source = keys if is_cross else shape.width
        self.q_proj = nn.Linear(shape.width, shape.heads * shape.head_dim, bias=False)
        self.k_proj = nn.Linear(source, keys, bias=False)
        self.v_proj = nn.Linear(source, keys, bias=False)
        self.o_proj = nn.Linear(shape.heads * shape.head_dim, shape.width, bias=False)

    def heads(self, tokens: Tensor) -> Tensor:
        """(B, T, ·E) -> (B, ·, T, E)"""
        return tokens.unflatten(-1, (-1, self.shape.head_dim)).transpose(1, 2)

    def memory(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """What is attended to of the context's keys and values (B, K, S, E): once for all steps of a chunk."""
        keys, values = (tensor.to(self.q_proj.weight.dtype) for tensor in (keys, values))
        if not self.is_cross:
            return keys, values
        keys, values = (tensor.transpose(1, 2).flatten(2) for tensor in (keys, values))
        return self.heads(self.k_proj(keys)), self.heads(self.v_proj(values))

    def forward(self, tokens: Tensor, keys: Tensor, values: Tensor, mask: Tensor, angles: Tensor) -> Tensor:
        """tokens (B, T, W), keys, values (B, K, S, E), mask (B, 1, T, S or S + T), angles (B, T, E / 2)."""
        query = rotate(self.heads(self.q_proj(tokens)), angles)
        if not self.is_cross:
            keys = torch.cat((keys, rotate(self.heads(self.k_proj(tokens)), angles)), dim=2)
            values = torch.cat((values, self.heads(self.v_proj(tokens))), dim=2)
        shared = self.shape.heads != self.shape.key_heads
        attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, enable_gqa=shared)
        return self.o_proj(attended.transpose(1, 2).flatten(2))


class ExpertMLP(nn.Module):
    """A gated feed-forward block."""

    def __init__(self, shape: Geometry):
        super().__init__()
        self.gate_proj = nn.Linear(shape.width, shape.feed_forward_width, bias=False)
        self.up_proj = nn.Linear(shape.width, shape.feed_forward_width, bias=False)
        self.down_proj = nn.Linear(shape.feed_forward_width, shape.width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(tokens)) * self.up_proj(tokens))


class ExpertLayer(GradientCheckpointingLayer):
    """A layer of Llama's kind, with the names that its parameters have in transformers."""

    def __init__(self, shape: Geometry, is_cross: bool):
        super().__init__()
        self.self_attn = ExpertAttention(shape, is_cross)
        self.mlp = ExpertMLP(shape)
        self.input_layernorm = nn.RMSNorm(shape.width, eps=shape.norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(shape.width, eps=shape.norm_eps)

    def forward(self, tokens: Tensor, keys: Tensor, values: Tensor, mask: Tensor, angles: Tensor) -> Tensor:
        """Arguments as `ExpertAttention.forward` -> (B, T, W)."""
        tokens = tokens + self.self_attn(self.input_layernorm(tokens), keys, values, mask, angles)
        return tokens + self.mlp(self.post_attention_layernorm(tokens))


class Memory(NamedTuple):
    """What an expert needs of a context, computed once for a chunk."""

    keys: list[Tensor]  # (B, K, S, E) of each layer
    values: list[Tensor]
    context: Context


class Expert(nn.Module):
    """Layers beside those of the language model, each attending to the keys and values of the same layer."""

    def __init__(self, shape: Geometry, num_layers: int, attention: str, is_causal: bool, starts: int):
        """`starts`: tokens before the actions (the state's) that do not attend to them."""
        super().__init__()
        self.shape, self.is_causal, self.starts = shape, is_causal, starts
        cross = {"joint": lambda _: False, "cross": lambda _: True, "alternating": lambda index: index % 2 == 1}
        self.layers = nn.ModuleList(ExpertLayer(shape, cross[attention](index)) for index in range(num_layers))
        self.norm = nn.RMSNorm(shape.width, eps=shape.norm_eps)

    def memory(self, context: Context) -> Memory:
        pairs = zip(self.layers, context.keys, context.values, strict=True)
        keys, values = zip(*(layer.self_attn.memory(*pair) for layer, *pair in pairs), strict=True)
        return Memory(list(keys), list(values), context)

    def forward(self, tokens: Tensor, memory: Memory) -> Tensor:
        """tokens (B, T, W) -> (B, T, W)"""
        context, count = memory.context, tokens.shape[1]
        exists = torch.ones_like(tokens[..., 0], dtype=torch.bool)
        mask = attention_mask(context, exists, self.is_causal)
        if self.starts and not self.is_causal:
            mask[:, :, : self.starts, context.mask.shape[1] + self.starts :] = False
        places = torch.arange(count, device=tokens.device)
        after = context.position[:, None] + places  # (B, T)
        for layer, keys, values, rates in zip(self.layers, memory.keys, memory.values, context.rotations, strict=True):
            is_cross = layer.self_attn.is_cross
            # Actions count from 0 where they see no keys but the context's, as in SmolVLA.
            angles = (places.expand_as(after) if is_cross else after)[..., None] * rates
            seen = mask[..., : context.mask.shape[1]] if is_cross else mask
            tokens = layer(tokens, keys, values, seen, angles)
        return self.norm(tokens)
