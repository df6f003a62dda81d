"""The GPT over signals: embeddings of ids, channels and time, the blocks of `models.gpt`, and a head.

Shapes: B batch, C channels, T time steps, D embedding width, V ids, L tokens of a text, N sequences.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.gpt.decoder import Decoder
from models.gpt.layers import Block, KeysAndValues, norm_of, rotation
from models.pretrained import pretrained_config
from models.signal_gpt.config import Config, TokenCorruption
from models.signal_gpt.corruption import corrupted
from models.signal_gpt.generation import Generation

NO_LOSS = -100

_Settings = pretrained_config(Config, "signal_gpt", "_Settings", __name__)


class SignalGPTConfig(_Settings):
    """`tie_head` is transformers' `tie_word_embeddings`."""

    def __init__(self, **values: Any):
        tied = values.setdefault("tie_word_embeddings", values.get("tie_head", True))
        super().__init__(**{**values, "tie_head": tied})


class SignalGPT(Generation, Decoder):
    """A decoder-only transformer that predicts the next id of every channel.

    With `layout: streams` a channel is a sequence of its own. With `flattened` all channels are one sequence, time by
    time: a token attends to every channel of its own and earlier time steps, and predicts the next id of its channel.
    Texts over signals (B, L) are one sequence each, whose tokens name their channels; -1: none.
    """

    config_class = SignalGPTConfig
    main_input_name = "input_ids"

    def __init__(self, config: SignalGPTConfig):
        super().__init__(config)
        self.is_flattened = config.layout == "flattened"
        self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.channel_embedding = nn.Embedding(config.channels + 1, config.n_embd)  # the first row: no channel
        if config.position == "learned":
            self.position_embedding = nn.Embedding(config.context, config.n_embd)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = norm_of(config)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.set_token_corruption(config.token_corruption)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        channels: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **context: Any,
    ) -> dict[str, Tensor]:
        """Scores of the next ids and, given those, the loss.

        Args:
            input_ids: (B, C, T) ids; of texts (B, L).
            labels: as input_ids, the next id at each place; -100: no loss.
            channels: (B, C) indices of the channels, of texts (B, L); None: the first ones.
            attention_mask: (B, L), 0 at the padding after a text, which changes no score before it.
            context: other batch keys, which this network does not use.

        Returns:
            {"logits": (B, C, T, V) or (B, L, V)}, with labels also {"loss"}.

        Raises:
            ValueError: more time steps than `context`.
            IndexError: a channel that the model does not have.
        """
        if self.training and self.token_corruption is not None:
            input_ids = self._corrupted(input_ids)
        logits = self.head(self.hidden(input_ids, channels))
        if labels is None:
            return {"logits": logits}
        return {"loss": F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten()), "logits": logits}

    def loss_items(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Places that carry loss."""
        return {"loss": (batch["labels"] != NO_LOSS).sum()}

    def hidden(
        self,
        input_ids: Tensor,
        channels: Tensor | None = None,
        past: list[KeysAndValues] | None = None,
        first: int = 0,
    ) -> Tensor:
        """What the head reads: (B, C, T) or (B, L) -> the same with D behind.

        Args:
            past: of each block, what it has computed for the `first` time steps before these.
        """
        shape = input_ids.shape
        if first + shape[-1] > self.config.context:
            raise ValueError(f"input_ids: {first + shape[-1]} time steps, the model's context is {self.config.context}")
        times = torch.arange(first, first + shape[-1], device=input_ids.device)
        tokens = self.token_embedding(self._sequences(input_ids))  # (N, L, D)
        tokens = tokens + self.channel_embedding(self._sequences(_channel_of_each(input_ids, channels)) + 1)
        is_flat = self.is_flattened and len(shape) == 3
        if is_flat:
            times = times.repeat_interleave(shape[1])
        if self.config.position == "learned":
            tokens = tokens + self.position_embedding(times)
        tokens = F.dropout(tokens, self.config.dropout, self.training)
        turned = self._turned(times)
        mask = _up_to_own_time(times, first, shape[1]) if is_flat and shape[1] > 1 else None
        for index, block in enumerate(self.blocks):
            tokens = block(tokens, turned, mask, None if past is None else past[index])
        tokens = self.norm(tokens)
        if is_flat:
            return tokens.unflatten(1, (shape[-1], shape[1])).transpose(1, 2)
        return tokens.view(*shape, -1)

    def resize_context(
        self, context: int, rope_theta: float | None = None, max_position_embeddings: int | None = None
    ) -> None:
        """Read inputs of up to `context` time steps from now on; without another `rope_theta`, scores of shorter inputs
        stay as they are.

        Raises:
            ValueError: `position` is not rope, the context would shrink, or is beyond `max_position_embeddings`.
        """
        config = self.config
        longest = max_position_embeddings or config.max_position_embeddings
        if config.position != "rope":
            raise ValueError(
                f"model.position: {config.position} has one row for each of {config.context} time steps; only rope can "
                "be resized"
            )
        if context < config.context:
            raise ValueError(f"a context of {context} time steps is shorter than the model's {config.context}")
        if longest is not None and context > longest:
            raise ValueError(f"a context of {context} time steps is beyond max_position_embeddings {longest}")
        config.context, config.max_position_embeddings = context, longest
        config.rope_theta = rope_theta or config.rope_theta

    def set_token_corruption(self, settings: dict[str, Any] | None) -> None:
        """Corrupt inputs in training from now on by `TokenCorruption`'s keys, or not.

        Raises:
            ValueError, TypeError: a key is wrong.
        """
        self.token_corruption = None if settings is None else TokenCorruption(**settings)
        self.config.token_corruption = settings and asdict(self.token_corruption)

    def _sequences(self, values: Tensor) -> Tensor:
        """(B, C, T) or (B, L) -> the sequences (N, L) that attention sees."""
        if values.dim() == 2:
            return values
        return values.transpose(1, 2).flatten(1) if self.is_flattened else values.flatten(0, 1)

    def _corrupted(self, input_ids: Tensor) -> Tensor:
        rows = corrupted(self._sequences(input_ids), self.token_corruption, self.config.vocab_size)
        if input_ids.dim() == 2 or not self.is_flattened:
            return rows.view(input_ids.shape)
        return rows.unflatten(1, (input_ids.shape[2], input_ids.shape[1])).transpose(1, 2)

    def _turned(self, times: Tensor) -> tuple[Tensor, Tensor] | None:
        if self.config.position != "rope":
            return None
        return rotation(times, self.config.n_embd // self.config.n_head, self.config.rope_theta)


def _channel_of_each(input_ids: Tensor, channels: Tensor | None) -> Tensor:
    """The channel of each place, as input_ids; -1: none."""
    if input_ids.dim() == 2:
        return torch.full_like(input_ids, -1) if channels is None else channels
    if channels is None:
        channels = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
    return channels[:, :, None].expand(input_ids.shape)


def _up_to_own_time(times: Tensor, first: int, channels: int) -> Tensor:
    """(1, 1, L, S) true where the column's time step is not after the row's; S counts the `first` steps before, too."""
    columns = torch.arange(first * channels + len(times), device=times.device) // channels
    return (columns <= times[:, None])[None, None]
