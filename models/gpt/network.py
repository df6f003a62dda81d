"""The network: embeddings, blocks, head and loss, for one vocabulary or several.

All vocabularies share one table, each in rows of its own, so that every weight has a gradient in every step. The rows
of a vocabulary are filled up to a multiple of 64, the width that a GPU's matrix products like. Those further rows are
saved with the others, never read, and get no probability: the loss is that of the vocabulary without them.

Shapes: B batch, C contexts, T tokens, D embedding width, V tokens of a vocabulary, P the same filled up.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.gpt.config import Config
from models.gpt.decoder import Decoder
from models.gpt.generation import Generation
from models.gpt.layers import ROPE_THETA, Block, KeysAndValues, norm_of, rotation
from models.pretrained import pretrained_config

PAD_TO = 64
EXACT_WIDTH_ON = ("cpu",)  # devices where scoring the further rows costs more than an even width spares
HALF = (torch.bfloat16, torch.float16)

GPTSettings = pretrained_config(Config, "gpt", "GPTSettings", __name__)


class GPTConfig(GPTSettings):
    """`tie_head` is transformers' `tie_word_embeddings`; where a checkpoint says otherwise of the two, the latter."""

    def __init__(self, **values: Any):
        tied = values.setdefault("tie_word_embeddings", values.get("tie_head", True))
        super().__init__(**{**values, "tie_head": tied})


class Head(nn.Linear):
    """Scores of tokens; of all vocabularies, or of the rows of one."""

    def forward(self, tokens: Tensor, rows: slice | None = None) -> Tensor:
        """(…, D) -> (…, P)"""
        return F.linear(tokens, self.weight if rows is None else self.weight[rows])


class GPT(Generation, Decoder):
    """A decoder-only transformer that predicts the next token."""

    config_class = GPTConfig

    def __init__(self, config: GPTConfig):
        super().__init__(config)
        # Each look at a configuration of transformers takes microseconds.
        self.block_size, self.position, self.dropout = config.block_size, config.position, config.dropout
        self.contexts, self.datasets = config.context_names, config.dataset_names
        self.vocab_sizes = config.vocab_sizes or [config.vocab_size]
        padded = [-(-size // PAD_TO) * PAD_TO for size in self.vocab_sizes]
        self.starts = [0, *itertools.accumulate(padded)]
        rows = self.starts[-1]
        self.token_embedding = nn.Embedding(rows, config.n_embd)
        if config.position == "learned":
            self.position_embedding = nn.Embedding(config.block_size, config.n_embd)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = norm_of(config)
        self.head = Head(config.n_embd, rows, bias=False)
        self.post_init()
        self.multiplied = self._multiplied()

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        shift_labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        dataset_index: int | None = None,
        **context: Any,
    ) -> dict[str, Any]:
        """Scores of the next tokens or, given those tokens, the loss alone: no copy of the scores outlives it.

        Args:
            input_ids: (B, T); with several contexts (B, C, T), whose embeddings are added.
            labels: as input_ids, the tokens themselves, shifted here; -100: no loss.
            shift_labels: as input_ids, the next token at each place; counts instead of `labels`.
            position_ids: (B, T); where they do not increase by one, a document begins, which attends only to itself.
            dataset_index: whose vocabulary the batch is in, where there are several data sets.
            context: other batch keys, which this network does not use.

        Returns:
            {"loss"}, with several contexts also {"losses"}, by name; without labels {"logits": (B, T, V)}, with
            several contexts one of each by name.

        Raises:
            ValueError: more tokens than `block_size`, other contexts than the model's, or no such data set.
        """
        vocabularies = self.vocabularies(input_ids, dataset_index)
        hidden = self.hidden(input_ids, vocabularies, position_ids)
        if shift_labels is None and labels is not None:
            shift_labels = F.pad(labels[..., 1:], (0, 1), value=-100)
        names = self.contexts
        if shift_labels is None:
            scores = [self.logits(hidden, each) for each in vocabularies]
            return {"logits": scores[0] if names is None else dict(zip(names, scores, strict=True))}
        if names is None:
            return {"loss": self._loss(hidden, shift_labels, vocabularies[0])}
        targets = shift_labels.unbind(1)
        losses = [self._loss(hidden, targets[vocabulary], vocabulary) for vocabulary in vocabularies]
        return {"loss": torch.stack(losses).mean(), "losses": dict(zip(names, losses, strict=True))}

    def loss_items(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Term of the loss (a context, or `loss`) -> number of tokens in this batch that carry it."""
        targets = batch["shift_labels"] if "shift_labels" in batch else batch["labels"][..., 1:]
        if self.contexts is None:
            return {"loss": (targets != -100).sum()}
        return {name: (context != -100).sum() for name, context in zip(self.contexts, targets.unbind(1), strict=True)}

    @property
    def loss_weights(self) -> dict[str, float]:
        return {name: 1 / len(self.contexts) for name in self.contexts or ()}

    def vocabularies(self, input_ids: Tensor, dataset_index: int | None) -> list[int]:
        """Which vocabularies the tokens are in: one for each context, else a single one.

        Raises:
            ValueError: the tokens or the index do not fit the model.
        """
        contexts, datasets = self.contexts, self.datasets
        expected = input_ids.shape[:1] if contexts is None else (input_ids.shape[0], len(contexts))
        if input_ids.shape[:-1] != expected or input_ids.shape[-1] > self.block_size:
            wanted = "batch" if contexts is None else f"batch, {len(contexts)} contexts"
            raise ValueError(
                f"input_ids of shape {tuple(input_ids.shape)}: this model reads ({wanted}, tokens), at most "
                f"{self.block_size} tokens (block_size)"
            )
        if contexts is not None:
            return list(range(len(contexts)))
        if datasets is None:
            return [0]
        if dataset_index is None or not 0 <= dataset_index < len(datasets):
            raise ValueError(
                f"dataset_index: {dataset_index} names none of the model's vocabularies, 0 to {len(datasets) - 1} "
                f"({', '.join(datasets)})"
            )
        return [dataset_index]

    def hidden(
        self,
        input_ids: Tensor,
        vocabularies: list[int],
        position_ids: Tensor | None = None,
        past: list[KeysAndValues] | None = None,
        first: int = 0,
        padding: Tensor | None = None,
    ) -> Tensor:
        """What the head reads: (B, T) or (B, C, T) -> (B, T, D).

        Args:
            vocabularies: see `vocabularies`.
            past: of each block, what it has computed for the `first` tokens before these.
            padding: (B,) how many of all tokens are padding before each text; then without `position_ids`.
        """
        mask = None if position_ids is None else _same_document(position_ids)
        if padding is not None:
            position_ids, mask = _after_padding(padding, first, input_ids.shape[-1])
        positions = position_ids
        if positions is None:
            positions = torch.arange(first, first + input_ids.shape[-1], device=input_ids.device)
        tokens = self._embed(input_ids, vocabularies)
        if self.position == "learned":
            tokens = tokens + self.position_embedding(positions)
        turned = None
        if self.position == "rope":
            config = self.config
            turned = rotation(positions, config.n_embd // config.n_head, config.rope_theta or ROPE_THETA)
            if position_ids is not None:
                turned = turned[0][:, None], turned[1][:, None]  # the same for all heads
        tokens = F.dropout(tokens, self.dropout, self.training)
        for index, block in enumerate(self.blocks):
            tokens = block(tokens, turned, mask, None if past is None else past[index])
        return self.norm(tokens)

    def _embed(self, input_ids: Tensor, vocabularies: list[int]) -> Tensor:
        """(B, T) or (B, C, T) -> (B, T, D), the sum over contexts."""
        starts = [self.starts[vocabulary] for vocabulary in vocabularies]
        if input_ids.dim() == 2:
            return self.token_embedding(input_ids + starts[0] if starts[0] else input_ids)
        offsets = torch.tensor(starts, device=input_ids.device)[:, None]
        return self.token_embedding(input_ids + offsets).sum(dim=1)

    def logits(self, hidden: Tensor, vocabulary: int) -> Tensor:
        """(B, T, D) -> (B, T, V)"""
        return self._padded_logits(hidden, vocabulary)[..., : self.vocab_sizes[vocabulary]]

    def _padded_logits(self, hidden: Tensor, vocabulary: int) -> Tensor:
        """(B, T, D) -> (B, T, P), on a CPU (B, T, V)"""
        start, end = self.starts[vocabulary], self.starts[vocabulary + 1]
        if hidden.device.type in EXACT_WIDTH_ON:
            end = start + self.vocab_sizes[vocabulary]
        rows = None if end - start == self.starts[-1] else slice(start, end)
        if isinstance(self.head, Head):
            return self.head(hidden, rows)
        scores = self.head(hidden)  # an adapter around it computes all
        return scores if rows is None else scores[..., rows]

    def _loss(self, hidden: Tensor, targets: Tensor, vocabulary: int) -> Tensor:
        """Mean cross entropy of (B, T, D) with the next tokens (B, T), over those that are not -100."""
        logits = self._padded_logits(hidden, vocabulary)
        if logits.shape[-1] > self.vocab_sizes[vocabulary]:
            # Outside autograd: the softmax gives these columns a gradient of zero anyway.
            logits.detach()[..., self.vocab_sizes[vocabulary] :] = -torch.inf
        if logits.dtype in HALF:
            logits = logits.float()
        return F.cross_entropy(logits.flatten(0, -2), targets.flatten())

    def flops_per_sample(self) -> float:
        """Floating-point operations, forward and backward, of one sample of block_size tokens.

        A token costs 6 for each weight it is multiplied with, and 12·layers·D·T for attention, all T tokens counted
        as if none were masked. The head is in it, the tables that tokens and positions are looked up in are not. Of
        several data sets' vocabularies it is the mean one. Source: Chowdhery et al. 2022 (PaLM), appendix B.
        """
        config = self.config
        attention = 12 * config.n_layer * config.n_embd * config.block_size
        return float(config.block_size * (6 * self.multiplied + attention))

    def _multiplied(self) -> int:
        """Weights that each token is multiplied with."""
        trunk = sum(parameter.numel() for module in (*self.blocks, self.norm) for parameter in module.parameters())
        rows = self.starts[-1] / (len(self.vocab_sizes) if self.datasets else 1)
        return trunk + round(rows * self.config.n_embd)


def _same_document(position_ids: Tensor) -> Tensor:
    """(B, T) -> (B, 1, T, T) true where the column's token is of the row's document and not after it."""
    begins = F.pad(position_ids[:, 1:] != position_ids[:, :-1] + 1, (1, 0))
    document = begins.cumsum(-1)
    return (document[:, None, :, None] == document[:, None, None, :]).tril()


def _after_padding(padding: Tensor, first: int, length: int) -> tuple[Tensor, Tensor]:
    """Positions (B, T) of `length` tokens after `first` others, and the mask (B, 1, T, first + T) that hides padding.

    A token of padding sees itself, because a softmax over nothing would be NaN.
    """
    columns = torch.arange(first + length, device=padding.device)
    rows = columns[first:, None]  # (T, 1)
    padding = padding[:, None, None]
    mask = (columns <= rows) & ((columns >= padding) | (columns == rows))  # (B, T, S)
    return (rows.T - padding[:, 0]).clamp(min=0), mask[:, None]
