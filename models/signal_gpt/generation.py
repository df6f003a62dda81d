"""Continue signals by drawing one time step after the other.

Shapes: B batch, C channels, T time steps, V ids.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.gpt.layers import KeysAndValues


class Generation:
    """Mixin of the GPT over signals."""

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        max_new_tokens: int,
        channels: Tensor | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | None = None,
        use_cache: bool = True,
    ) -> Tensor:
        """The prompt and `max_new_tokens` time steps after it.

        Args:
            input_ids: (B, C, T), or (B, T).
            channels: (B, C), see `SignalGPT.forward`; not of texts.
            temperature: scores are divided by it; 0: the most probable id.
            top_k: draw from so many most probable ids. None: from all.
            top_p: draw from the most probable ids whose probabilities first sum to this. None: from all.
            generator: of the draws. None: torch's own.
            use_cache: keep keys and values of past steps. Once they fill the context, the model begins again from its
                last half; without the cache it reads the whole context for each step.

        Raises:
            ValueError: an empty prompt.
        """
        if not input_ids.shape[-1]:
            raise ValueError("the prompt is empty; give at least one time step")
        was_training, context = self.training, self.config.context
        start = read = max(0, input_ids.shape[-1] - context)  # first step in the context; first that is not cached
        past = _cache(self) if use_cache else None
        self.eval()
        try:
            for _ in range(max_new_tokens):
                length = input_ids.shape[-1]
                if length - start > context:
                    start = read = length - (max(1, context // 2) if use_cache else context)
                    past = _cache(self) if use_cache else None
                hidden = self.hidden(input_ids[..., read:], channels, past, read - start)
                drawn = next_ids(self.head(hidden[..., -1, :]), temperature, top_k, top_p, generator)
                read = length if use_cache else start
                input_ids = torch.cat((input_ids, drawn[..., None]), dim=-1)
            return input_ids
        finally:
            self.train(was_training)


def _cache(model: nn.Module) -> list[KeysAndValues]:
    return [KeysAndValues() for _ in model.blocks]


def next_ids(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw ids from their scores: (…, V) -> (…)."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[..., -1:], -torch.inf)
    probabilities = logits.softmax(-1)
    if top_p is not None:
        ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
        dropped = ordered.cumsum(-1) - ordered >= top_p  # those before it sum to enough
        probabilities = probabilities.scatter(-1, order, ordered.masked_fill(dropped, 0.0))
    rows = probabilities.flatten(0, -2)
    device = rows.device if generator is None else generator.device
    return torch.multinomial(rows.to(device), 1, generator=generator).view(logits.shape[:-1]).to(logits.device)
