"""What a language model has read: the keys and values of its layers, to which later tokens attend.

Shapes: B batch, S tokens read, N tokens to read, D width, K key heads, E their size, R axes of positions (1, or 3 for
Qwen's models).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import DynamicCache


@dataclass(frozen=True)
class Context:
    """Tokens read so far. It is never changed: reading more gives another one.

    Attributes:
        mask: (B, S) bool, the tokens that exist.
        position: (B,), the position of the next token.
        keys, values: (B, K, S, E) of each layer, keys after the rotation by their positions.
        hidden: (B, S, D), after the last layer and its norm.
        last: (B, D), the hidden state of the last token that exists.
        rotations: (E / 2,) of each layer, the frequencies by which its keys were rotated.
    """

    mask: Tensor
    position: Tensor
    keys: list[Tensor]
    values: list[Tensor]
    hidden: Tensor
    last: Tensor
    rotations: list[Tensor]

    def detach(self) -> Context:
        keys, values = ([tensor.detach() for tensor in tensors] for tensors in (self.keys, self.values))
        return replace(self, keys=keys, values=values, hidden=self.hidden.detach(), last=self.last.detach())


class GrowingCache(DynamicCache):
    """A cache for one call of a language model: it starts from a context and keeps what the call adds.

    It ignores sliding windows: a prefix is shorter than those.
    """

    def __init__(self, context: Context | None):
        super().__init__()
        self.context, self.keys, self.values = context, {}, {}

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs):
        """key_states, value_states (B, K, N, E) -> those of the context and the new ones, (B, K, S + N, E)."""
        if self.context is not None:
            key_states = torch.cat((self.context.keys[layer_idx], key_states), dim=2)
            value_states = torch.cat((self.context.values[layer_idx], value_states), dim=2)
        self.keys[layer_idx], self.values[layer_idx] = key_states, value_states
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0 if self.context is None else self.context.mask.shape[1]


def attention_mask(context: Context | None, mask: Tensor, causal: bool) -> Tensor:
    """Which keys each of N new tokens attends to: (B, 1, N, S + N) bool.

    A new token attends to all tokens of the context, and to the new ones: all, or if `causal` those before it. Tokens
    that do not exist are attended to by themselves alone, for a softmax over nothing is not a number.
    """
    count = mask.shape[1]
    allowed = mask[:, None, :].expand(-1, count, -1)
    if causal:
        allowed = allowed.tril()
    allowed = allowed | torch.eye(count, dtype=torch.bool, device=mask.device)
    if context is not None:
        allowed = torch.cat((context.mask[:, None, :].expand(-1, count, -1), allowed), dim=2)
    return allowed[:, None]


def joined(
    context: Context | None,
    cache: GrowingCache,
    mask: Tensor,
    position: Tensor,
    hidden: Tensor,
    rotations: list[Tensor],
) -> Context:
    """The context after tokens with `mask` (B, N) and `hidden` (B, N, D); position (B,) is the next token's."""
    # The last token that exists; where there is none, that of the context stays the last.
    place = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).argmax(dim=1)
    last = hidden[torch.arange(len(hidden), device=hidden.device), place]
    keys, values = ([tensors[layer] for layer in sorted(tensors)] for tensors in (cache.keys, cache.values))
    if context is not None:
        last = torch.where(mask.any(dim=1)[:, None], last, context.last)
        mask, hidden = torch.cat((context.mask, mask), dim=1), torch.cat((context.hidden, hidden), dim=1)
    return Context(mask, position, keys, values, hidden, last, rotations)
