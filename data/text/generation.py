"""Text from a language model: what a prompt is continued with does not depend on the other prompts of its batch.

Shapes: B prompts, T tokens of the longest, V tokens of the vocabulary, N new tokens.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationMixin


@dataclass(frozen=True)
class GenerationConfig:
    """How to generate.

    Attributes:
        max_new_tokens: New tokens at most.
        temperature: 0 always takes the most probable token.
        top_k: Only the k most probable tokens; None: all.
        seed: Of the draws, together with the prompt and the number of its sample.
    """

    max_new_tokens: int = 256
    temperature: float = 0.8
    top_k: int | None = 200
    seed: int = 0


class Continuation(NamedTuple):
    """New tokens after a prompt; `ended`: by an end token, which is left out."""

    prompt: list[int]
    tokens: list[int]
    ended: bool


class Draw:
    """Sampling as a logits processor: the scores that it returns leave one token.

    Each row has random numbers of its own, so that its tokens do not depend on the batch that it is in.

    Args:
        seeds: One for each row.
    """

    def __init__(self, config: GenerationConfig, seeds: list[int], device: Any):
        self.temperature, self.top_k, self.step = config.temperature, config.top_k, 0
        rows = [torch.rand(config.max_new_tokens, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        self.uniform = torch.stack(rows).to(device)  # (B, N)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, T), (B, V) -> (B, V): 0 for the drawn token, -inf for all others."""
        kept = scores.float().topk(min(self.top_k or scores.shape[-1], scores.shape[-1]))
        cumulative = (kept.values / self.temperature).softmax(-1).cumsum(-1)
        threshold = self.uniform[:, self.step, None] * cumulative[:, -1:]
        self.step += 1
        place = torch.searchsorted(cumulative, threshold, right=True).clamp(max=cumulative.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(-1, kept.indices.gather(-1, place), 0.0)


def require_numbers(input_ids: Tensor, scores: Tensor) -> Tensor:
    """A logits processor that raises ValueError for scores that are NaN, which would pass for the first token."""
    if scores.isnan().any():
        raise ValueError("the model's scores are not numbers; its weights are damaged")
    return scores


def generate(
    model: Any,
    prompts: list[list[int]],
    config: GenerationConfig,
    ends: Iterable[int] = (),
    pad: int = 0,
    numbers: list[int] | None = None,
) -> list[Continuation]:
    """Continue each prompt; a model with a table of positions ends where its table does.

    Args:
        model: With `generate`, which takes the arguments of transformers' (see `_run`).
        ends: Tokens that end a text, besides those of a transformers model's generation config.
        pad: Any token of the vocabulary.
        numbers: Of the sample, for each prompt: the same prompt with another number is drawn again. None: all 0.

    Raises:
        ValueError: the model has no `generate` or is damaged, or no position is left after a prompt.
    """
    inner = _inner(model)
    if not hasattr(inner, "generate"):
        raise ValueError(f"{type(inner).__name__} cannot write text: it has no method `generate`")
    ends = sorted({*ends, *_own_ends(inner)})
    takes_padding = "position_ids" in inspect.signature(inner.forward).parameters
    groups: dict[tuple, list[int]] = {}
    for index, prompt in enumerate(prompts):
        # A model without positions as arguments may count padding as text, so its prompts must be equally long.
        length = None if takes_padding else len(prompt)
        groups.setdefault((room_after(model, prompt, config.max_new_tokens), length), []).append(index)
    numbers, found = numbers or [0] * len(prompts), {}
    was_training = model.training
    model.eval()
    try:
        for (count, _), group in groups.items():
            rows = [prompts[index] for index in group]
            texts = [repr((config.seed, prompts[index], numbers[index])).encode() for index in group]
            seeds = [int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1 for text in texts]
            found |= zip(group, _run(model, rows, config, count, seeds, ends, pad), strict=True)
    finally:
        model.train(was_training)
    return [found[index] for index in range(len(prompts))]


@torch.no_grad()
def _run(
    model: Any,
    prompts: list[list[int]],
    config: GenerationConfig,
    count: int,
    seeds: list[int],
    ends: list[int],
    pad: int,
) -> list[Continuation]:
    """One call of the model's `generate`: `count` new tokens at most."""
    device = next(model.parameters()).device
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    mask = (torch.arange(width, device=device) >= width - lengths[:, None]).long()
    written = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=count,
        do_sample=False,
        logits_processor=[require_numbers, *([Draw(config, seeds, device)] if config.temperature else [])],
        eos_token_id=ends or None,
        pad_token_id=pad,
    )
    found = []
    for prompt, tokens in zip(prompts, written[:, width:].tolist(), strict=True):
        end = next((place for place, token in enumerate(tokens) if token in ends), None)
        found.append(Continuation(prompt, tokens[:end], end is not None))
    return found


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """The prompt's token ids; that of the beginning (or end) of a text where it is empty."""
    try:
        ids = tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
    except Exception as error:  # tokenizers raises bare exceptions
        raise ValueError(f"the prompt {shown(prompt)} cannot be read by the tokenizer: {error}") from error
    special = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    ids = ids or ([] if special is None else [special])
    if not ids:
        raise ValueError(f"the prompt {shown(prompt)} has no tokens; give some text")
    return ids


def shown(prompt: str) -> str:
    return repr(prompt) if len(prompt) <= 20 else f"{prompt[:20]!r} …"


def room_after(model: Any, prompt: list[int], wanted: int) -> int:
    """New tokens that the model can write after a prompt: as many as wanted, or what its positions leave.

    A table of positions has an end; rotated ones (`rope_parameters`, once `rope_theta`) have none, and our own networks
    read the end of a long text.

    Raises:
        ValueError: the prompt alone fills the table.
    """
    inner = _inner(model)
    if not isinstance(inner, GenerationMixin):
        return wanted
    config = inner.config.get_text_config(decoder=True)
    positions = getattr(config, "max_position_embeddings", None)
    has_table = not any(getattr(config, name, None) is not None for name in ("rope_parameters", "rope_theta"))
    if positions is None or not has_table:
        return wanted
    if len(prompt) >= positions:
        room = f"the model has positions for {positions} only, one of them for what it writes"
        raise ValueError(f"the prompt has {len(prompt)} tokens but {room}; shorten the prompt")
    return min(wanted, positions - len(prompt))


def _inner(model: Any) -> Any:
    """The model that PEFT wraps, or itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _own_ends(inner: Any) -> list[int]:
    """End tokens of a transformers model's generation config."""
    ends = inner.generation_config.eos_token_id if isinstance(inner, GenerationMixin) else None
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


@dataclass(frozen=True)
class TextSampler:
    """Writes `count` texts, each the prompt and its continuation: the same for the same weights and seed."""

    tokenizer: Any
    prompt: str
    count: int
    config: GenerationConfig

    def check(self, model: Any) -> None:
        """Raises ValueError: the prompt has no tokens, unknown characters, or no room after it."""
        room_after(model, prompt_ids(self.tokenizer, self.prompt), 1)

    def __call__(self, model: Any, seed: int) -> list[str]:
        """Raises ValueError as `check`; the model is left in the mode in which it was."""
        prompt = prompt_ids(self.tokenizer, self.prompt)
        config = GenerationConfig(self.config.max_new_tokens, self.config.temperature, self.config.top_k, seed)
        texts = generate(model, [prompt] * self.count, config, numbers=list(range(self.count)))
        return [self.tokenizer.decode([*prompt, *text.tokens]) for text in texts]


def sampler_of(run: Any, processor: Any, model: Any) -> TextSampler | None:
    """How a run with `sample_tokens` writes samples; None if its data has no single tokenizer.

    Raises:
        ValueError: the user's prompt is too long or cannot be encoded, or samples are asked for on the command line.
    """
    process, tokenizer = run.process, getattr(processor, "tokenizer", None)
    if tokenizer is None:
        if run.on_command_line("sample_tokens"):
            place = run.place("sample_tokens")
            raise ValueError(f"`sample_tokens`{place}: this data has no single tokenizer to write with; set it to 0")
        run.notes.append("no samples: the data has no single tokenizer to write text with")
        return None
    config = GenerationConfig(process.sample_tokens, process.sample_temperature, process.sample_top_k)
    sampler = TextSampler(tokenizer, process.sample_prompt, process.sample_count, config)
    try:
        sampler.check(model)
    except ValueError as error:
        if run.was_set("sample_prompt"):
            raise ValueError(f"`sample_prompt`{run.place('sample_prompt')}: {error}") from error
        sampler = replace(sampler, prompt=tokenizer.decode([0]))  # a vocabulary without line breaks
    return sampler
