"""The head that writes actions as tokens of the language model, one after the other.

Shapes: B batch, C chunk size, A action dim, D width, N tokens of a chunk, V different action tokens, Z state (padded).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from models.vla.action_tokens import ActionTokens, BinTokens, FastTokens
from models.vla.backbone import Backbone
from models.vla.context import Context


class Reference:
    """A module that another one uses without having its weights.

    PEFT copies a head that is trained beside an adapter: the copy uses the same module. In a copy of the whole policy
    it is the copied one.
    """

    def __init__(self, module: nn.Module):
        self.module = module

    def __deepcopy__(self, copies: dict[int, Any]) -> Reference:
        return Reference(copies.get(id(self.module), self.module))


class TokensHead(nn.Module):
    """Action tokens are the last V of the language model's vocabulary; its own output layer predicts them.

    Only action tokens are predicted, and only those that still fit into the chunk, so that every output is a chunk.
    Sources: OpenVLA (arXiv:2406.09246) for bins, FAST (arXiv:2501.09747).

    Raises:
        ValueError: the language model has fewer tokens.
    """

    def __init__(self, config: Any, backbone: Backbone):
        super().__init__()
        self.config = config
        self.backbone_of_policy = Reference(backbone)
        self.tokens = action_tokens(config)
        self.first = backbone.text_config.vocab_size - len(self.tokens.numbers)
        if self.first < 0:
            raise ValueError(
                f"model.action_tokenizer has {len(self.tokens.numbers)} tokens but the language model knows "
                f"{backbone.text_config.vocab_size}; train a smaller one with prepare.py"
            )
        self.start = nn.Embedding(1, backbone.width)  # the token after which actions begin
        if config.state_as == "suffix":
            self.state_proj = nn.Linear(config.max_state_dim or config.state_dim, backbone.width)

    @property
    def backbone(self) -> Backbone:
        return self.backbone_of_policy.module

    def condition(self, context: Context, state: Tensor) -> Context:
        """The context in which actions begin."""
        tokens = self.start.weight.expand(len(state), 1, -1)
        if self.config.state_as == "suffix":
            tokens = torch.cat((self.state_proj(state)[:, None], tokens), dim=1)
        return self.backbone.append(context, tokens, torch.ones_like(tokens[..., 0], dtype=torch.bool))

    def action_errors(self, actions: Tensor, condition: Context) -> Tensor:
        """Cross entropy of each number's token (B, C, A); of FAST that of the chunk, spread evenly over its numbers."""
        ids, exists = self.encoded(actions)
        hidden = condition.last[:, None]
        if ids.shape[1] > 1:
            read = self.backbone.append(condition, self.embed(ids[:, :-1]), exists[:, :-1])
            hidden = torch.cat((hidden, read.hidden[:, condition.mask.shape[1] :]), dim=1)  # before each token
        losses = F.cross_entropy(self.logits(hidden).float().transpose(1, 2), ids, reduction="none") * exists
        if isinstance(self.tokens, BinTokens):
            return losses.view(actions.shape)
        return (losses.sum(dim=1) / actions[0].numel())[:, None, None].expand(actions.shape)

    def encoded(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, N) of chunks (B, C, A), 0 … V - 1, and which of them exist (B, N)."""
        if isinstance(actions, FakeTensor):  # an estimate of memory has no values: a token for each number is the most
            ids = torch.zeros(len(actions), actions[0].numel(), dtype=torch.long, device=actions.device)
            return ids, torch.ones_like(ids, dtype=torch.bool)
        rows = self.tokens.encode(actions.detach().cpu().double().numpy())
        lengths = torch.tensor([len(row) for row in rows])
        exists = torch.arange(int(lengths.max())) < lengths[:, None]
        ids = torch.zeros(exists.shape, dtype=torch.long)
        ids[exists] = torch.from_numpy(np.concatenate(rows))
        return ids.to(actions.device), exists.to(actions.device)

    def embed(self, ids: Tensor) -> Tensor:
        """ids (B, N) of action tokens -> (B, N, D)"""
        return self.backbone.embed(self.first + ids)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (…, D) -> (…, V)"""
        output = self.backbone.vlm.get_input_embeddings() if self.backbone.is_tied else self.backbone.lm_head
        if type(output) in (nn.Embedding, nn.Linear):  # not wrapped or quantised: other words need no logits
            return F.linear(hidden, output.weight[self.first : self.first + len(self.tokens.numbers)])
        return self.backbone.logits(hidden)[..., self.first : self.first + len(self.tokens.numbers)]

    @torch.no_grad()
    def sample_chunks(self, like: Tensor, condition: Context, generator: Any = None) -> Tensor:
        """The chunks (B, C, A) of the likeliest tokens, in the type of `like` (B, C, A)."""
        numbers = torch.from_numpy(self.tokens.numbers).to(like.device)
        left = torch.full((len(like),), like[0].numel(), device=like.device)  # numbers that a chunk still lacks
        context, written = condition, []
        while True:
            writes = left > 0
            logits = self.logits(context.last).masked_fill(numbers > left[:, None], -torch.inf)
            token = logits.argmax(dim=-1)
            written.append(token.where(writes, -1))
            left = left - numbers[token].where(writes, 0)
            if not left.any():
                break
            context = self.backbone.append(context, self.embed(token[:, None]), writes[:, None])
        rows = torch.stack(written, dim=1).tolist()
        chunks, malformed = self.tokens.decode([[token for token in row if token >= 0] for row in rows])
        assert not malformed, malformed
        return torch.from_numpy(chunks).to(like)


def action_tokens(config: Any) -> ActionTokens:
    """The tokens that a policy's configuration describes."""
    shape = config.chunk_size, config.action_dim
    return BinTokens(*shape) if config.action_tokenizer == "bins" else FastTokens(config.action_tokenizer, *shape)
