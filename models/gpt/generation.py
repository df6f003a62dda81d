"""Generate text by sampling one token after the other."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper

from models.gpt.layers import KeysAndValues

LogitsProcessor = Callable[[Tensor, Tensor], Tensor]


class Generation:
    """Mixin of the GPT: text generation by sampling one token after the other."""

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        max_new_tokens: int,
        do_sample: bool = True,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
        dataset_index: int | None = None,
        use_cache: bool = True,
        attention_mask: Tensor | None = None,
        logits_processor: Sequence[LogitsProcessor] = (),
        eos_token_id: Sequence[int] | None = None,
        pad_token_id: int = 0,
    ) -> Tensor:
        """The prompt and `max_new_tokens` after it, fewer if `eos_token_id` ends all texts.

        Args (named as for transformers' `generate`):
            input_ids: (B, T), or (B, C, T) with several contexts, each of which is continued.
            do_sample: draw from the softmax; false: the most probable token.
            temperature: scores are divided by it.
            top_k: draw from so many most probable tokens. None: from all.
            generator: of the draws; they are made on its device. None: torch's own.
            dataset_index: whose vocabulary the prompt is in.
            use_cache: keep keys and values of past tokens: the same scores for less. Once the text is longer than
                `block_size` only its end is read, whose positions change with each token, so that nothing can be kept.
            attention_mask: (B, T), 0 at the padding before shorter prompts, which changes no score. None: no padding.
            logits_processor: each maps (tokens so far, scores (B, V)) to new scores, in this order.
            eos_token_id: tokens that end a text; `pad_token_id` follows them. None: no token does.

        Raises:
            ValueError: an empty prompt, a token outside the vocabulary, padding after it, or a number out of range.
        """
        vocabularies = self.vocabularies(input_ids[..., -self.block_size :], dataset_index)
        _check_prompt(input_ids, [self.vocab_sizes[vocabulary] for vocabulary in vocabularies])
        steps = [*logits_processor]
        if do_sample:
            steps.append(TemperatureLogitsWarper(float(temperature)))
            steps += [TopKLogitsWarper(top_k)] if top_k is not None else []
        steps.append(functools.partial(_draw, generator=generator) if do_sample else _likeliest)
        was_training, read = self.training, Reading(self, vocabularies, _left_padding(attention_mask), use_cache)
        self.eval()
        try:
            return _continued(input_ids, max_new_tokens, read, steps, eos_token_id, pad_token_id)
        finally:
            self.train(was_training)


class Reading:
    """The network as a reader of growing texts, each token once until they outgrow `block_size`.

    Args:
        padding: (B,) tokens of padding before each text, or None.
    """

    def __init__(self, model: nn.Module, vocabularies: list[int], padding: Tensor | None, use_cache: bool):
        self.model, self.vocabularies, self.padding = model, vocabularies, padding
        self.past = [KeysAndValues() for _ in model.blocks] if use_cache else None
        self.read = 0  # tokens that are in `past`

    def __call__(self, input_ids: Tensor) -> list[Tensor]:
        """(B, T) or (B, C, T) -> scores (B, V) of the next token, for each vocabulary."""
        length = input_ids.shape[-1]
        outside = max(0, length - self.model.block_size)  # tokens that are no longer seen
        if outside:
            self.past, self.read = None, 0
        padding = None if self.padding is None else (self.padding - outside).clamp(min=0)
        new = input_ids[..., max(self.read, outside) :]
        hidden = self.model.hidden(new, self.vocabularies, past=self.past, first=self.read, padding=padding)
        self.read = length if self.past is not None else 0
        return [self.model.logits(hidden[:, -1], vocabulary).float() for vocabulary in self.vocabularies]


def _continued(
    input_ids: Tensor,
    max_new_tokens: int,
    read: Reading,
    steps: Sequence[LogitsProcessor],
    ends: Sequence[int] | None,
    pad: int,
) -> Tensor:
    """Texts with up to `max_new_tokens` more; each step maps scores on, the last one to tokens (B, 1)."""
    ended = torch.zeros_like(input_ids[..., :1], dtype=torch.bool)
    for _ in range(max_new_tokens):
        drawn = read(input_ids)
        for step in steps:
            drawn = [step(input_ids, scores) for scores in drawn]
        tokens = (drawn[0] if input_ids.dim() == 2 else torch.stack(drawn, dim=1)).to(input_ids)
        input_ids = torch.cat((input_ids, tokens.masked_fill(ended, pad)), dim=-1)
        if ends is not None:
            ended |= torch.isin(tokens, torch.tensor(ends, device=tokens.device))
            if ended.all():
                break
    return input_ids


def _left_padding(attention_mask: Tensor | None) -> Tensor | None:
    """(B, T) of 0 and 1 -> (B,) tokens of padding before each prompt; None: there is none."""
    if attention_mask is None or attention_mask.all():
        return None
    if (attention_mask.diff(dim=-1) < 0).any() or not attention_mask[:, -1].all():
        raise ValueError("attention_mask: padding must be before each prompt, not after or within it")
    return (attention_mask == 0).sum(-1)


def _likeliest(input_ids: Tensor, scores: Tensor) -> Tensor:
    """The most probable next token: (B, V) -> (B, 1)."""
    return scores.argmax(-1, keepdim=True)


def _draw(input_ids: Tensor, scores: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw the next token from its scores: (B, V) -> (B, 1)."""
    probabilities = scores.softmax(-1)
    if generator is not None:
        probabilities = probabilities.to(generator.device)
    return torch.multinomial(probabilities, 1, generator=generator)


def _check_prompt(input_ids: Tensor, sizes: list[int]) -> None:
    """Raise ValueError if the prompt is empty or a token is outside the vocabulary of its context."""
    if not input_ids.numel():
        raise ValueError("the prompt is empty; give at least one token")
    for tokens, size in zip([input_ids] if input_ids.dim() == 2 else input_ids.unbind(1), sizes, strict=True):
        outside = tokens[(tokens < 0) | (tokens >= size)]
        if outside.numel():
            raise ValueError(f"token {outside[0]} of the prompt is outside the vocabulary of {size} tokens")
