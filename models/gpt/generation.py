"""Generate text by sampling one token after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from models.gpt.layers import KeysAndValues


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
    ) -> Tensor:
        """Return the prompt and `max_new_tokens` after it. No token ends the text early.

        Args:
            input_ids: (B, T), or (B, C, T) with C contexts, each of which is continued.
            do_sample: draw from the softmax; false: the most probable token.
            temperature: scores are divided by it.
            top_k: draw from the k most probable tokens. None: from all.
            generator: random generator of the draws, which are made on its device. None: torch's default.
            dataset_index: the data set whose vocabulary the prompt is in.
            use_cache: keep keys and values of past tokens: the same scores in less time. When the text is longer than
                `block_size`, only its end is read, whose positions change with each token, so that nothing is kept.

        Raises:
            ValueError: an empty prompt, a token outside the vocabulary, or a number out of range.
        """
        _check(max_new_tokens, temperature, top_k)
        block_size, was_training = self.block_size, self.training
        vocabularies = self.vocabularies(input_ids[..., -block_size:], dataset_index)
        _check_prompt(input_ids, [self.vocab_sizes[vocabulary] for vocabulary in vocabularies])
        self.eval()
        try:
            past, read = [KeysAndValues() for _ in self.blocks] if use_cache else None, 0
            for _ in range(max_new_tokens):
                length = input_ids.shape[-1]
                if length > block_size:
                    past, read = None, 0
                new = input_ids[..., max(read, length - block_size) :]
                hidden = self.hidden(new, vocabularies, past=past, first=read)[:, -1]
                read = length if past is not None else 0
                scores = [self.logits(hidden, vocabulary) for vocabulary in vocabularies]
                drawn = [_next(logits, do_sample, temperature, top_k, generator) for logits in scores]
                tokens = drawn[0] if input_ids.dim() == 2 else torch.stack(drawn, dim=1)
                input_ids = torch.cat((input_ids, tokens.to(input_ids)), dim=-1)
        finally:
            self.train(was_training)
        return input_ids


def _next(
    logits: Tensor, do_sample: bool, temperature: float, top_k: int | None, generator: torch.Generator | None
) -> Tensor:
    """Draw the next token from its scores: (B, V) -> (B, 1)."""
    if not do_sample:
        return logits.argmax(-1, keepdim=True)
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    probabilities = logits.softmax(-1)
    if generator is not None:
        probabilities = probabilities.to(generator.device)
    return torch.multinomial(probabilities, 1, generator=generator)


def _check(max_new_tokens: int, temperature: float, top_k: int | None) -> None:
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens: {max_new_tokens} must be at least 0")
    if not temperature > 0:
        raise ValueError(f"temperature: {temperature} must be above 0; do_sample false takes the most probable token")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k: {top_k} must be at least 1")


def _check_prompt(input_ids: Tensor, sizes: list[int]) -> None:
    """Raise ValueError if the prompt is empty or a token is outside the vocabulary of its context."""
    if not input_ids.numel():
        raise ValueError("the prompt is empty; give at least one token")
    for tokens, size in zip([input_ids] if input_ids.dim() == 2 else input_ids.unbind(1), sizes, strict=True):
        outside = tokens[(tokens < 0) | (tokens >= size)]
        if outside.numel():
            raise ValueError(f"token {outside[0]} of the prompt is outside the vocabulary of {size} tokens")
