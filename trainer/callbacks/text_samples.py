"""Sample text from a language model during training, whenever the validation loss is the best so far."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import GenerationMixin, TrainerCallback

from trainer.callbacks.log_files import append, drop_later_lines
from trainer.distributed.shards import is_sharded

FILE = "samples.jsonl"


@dataclass(frozen=True)
class GenerationConfig:
    """How to sample.

    Attributes:
        tokens: Number of new tokens.
        prompt: Text to continue.
        count: Number of samples each time.
        temperature: 0: always the likeliest token.
        top_k: Only the k likeliest tokens; None: all.
    """

    tokens: int
    prompt: str = "\n"
    count: int = 1
    temperature: float = 0.8
    top_k: int | None = 200


def sample_texts(model: Any, tokenizer: Any, sampling: GenerationConfig, seed: int) -> list[str]:
    """Return `sampling.count` texts, each the prompt and its continuation; equal for equal weights and seeds.

    A text ends where a model's table of positions ends. The random number generators of training are not changed.

    Raises:
        ValueError: the prompt has no tokens, characters that the tokenizer does not know, or no room after it.
    """
    prompt = prompt_ids(tokenizer, sampling.prompt)
    tokens = min(sampling.tokens, room_after(model, prompt, sampling))
    device = next(model.parameters()).device
    ids = torch.tensor([prompt] * sampling.count, device=device)
    choice = {"do_sample": True, "temperature": sampling.temperature, "top_k": sampling.top_k}
    if sampling.temperature == 0:
        choice = {"do_sample": False}
    if isinstance(_inner(model), GenerationMixin):
        # By default transformers takes a padding token inside the prompt for padding.
        choice |= {"attention_mask": torch.ones_like(ids), "pad_token_id": tokenizer.eos_token_id or 0}
    was_training = model.training
    model.eval()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
            torch.manual_seed(seed)
            written = model.generate(input_ids=ids, max_new_tokens=tokens, **choice)
    finally:
        model.train(was_training)
    return [tokenizer.decode(text) for text in written.tolist()]


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """Return the token ids of the prompt; of an empty one the token that begins (or ends) a text."""
    try:
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    except Exception as error:  # tokenizers raises bare exceptions
        raise ValueError(f"`sample_prompt: {prompt!r}` cannot be read by the tokenizer: {error}") from error
    special = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    ids = ids or ([] if special is None else [special])
    if not ids:
        raise ValueError(f"`sample_prompt: {prompt!r}` has no tokens; give some text")
    return ids


def room_after(model: Any, prompt: list[int], sampling: GenerationConfig) -> int:
    """Return how many new tokens the model can write after a prompt: as requested, or as its positions allow.

    A table of positions has an end; rotary positions (`rope_parameters`, formerly `rope_theta`) have none, and Keel's
    own networks read only the end of a long text.

    Raises:
        ValueError: the prompt alone fills the table.
    """
    inner = _inner(model)
    if not isinstance(inner, GenerationMixin):
        return sampling.tokens
    config = inner.config.get_text_config(decoder=True)
    positions = getattr(config, "max_position_embeddings", None)
    has_table = not any(getattr(config, name, None) is not None for name in ("rope_parameters", "rope_theta"))
    if positions is None or not has_table:
        return sampling.tokens
    if len(prompt) >= positions:
        raise ValueError(
            f"`sample_prompt: {sampling.prompt[:20]!r} …` has {len(prompt)} tokens but the model has positions for "
            f"{positions} only, one of them for what it writes; shorten the prompt"
        )
    return positions - len(prompt)


def _inner(model: Any) -> Any:
    """The model that PEFT wraps, or itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


class WriteSamples(TrainerCallback):
    """Prints samples and appends them to OUT/samples.jsonl, a line each: `{"step", "eval_loss", "text"}`.

    If a model fails to write, one line is printed and training continues.

    Args:
        model: The model itself, without the wrapper that it is trained in.
        folder: The run's folder.
        seed: Of the run; each step samples with its own seed.
    """

    def __init__(self, model: Any, tokenizer: Any, sampling: GenerationConfig, folder: Path, seed: int):
        self.model, self.tokenizer, self.sampling = model, tokenizer, sampling
        self.path, self.seed = folder / FILE, seed

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            drop_later_lines(self.path, state)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        loss = metrics.get("eval_loss", math.nan)
        earlier = [line["eval_loss"] for line in state.log_history if "eval_loss" in line]
        is_best = math.isfinite(loss) and all(not loss > other for other in earlier)
        is_first = state.is_world_process_zero
        if not (is_best and state.global_step and (is_first or is_sharded(self.model))):
            return
        try:
            texts = sample_texts(self.model, self.tokenizer, self.sampling, self.seed + state.global_step)
        except Exception as error:  # `generate` of a model from elsewhere may raise anything
            reason = " ".join(str(error).split()) or type(error).__name__
            if is_first:
                tqdm.write(f"no sample at step {state.global_step}: {reason}", file=sys.stderr)
            return
        if not is_first:  # it was needed for its part of the weights only
            return
        for text in texts:
            tqdm.write(f"sample at step {state.global_step}: {text}", file=sys.stderr)
        lines = [json.dumps({"step": state.global_step, "eval_loss": loss, "text": text}) + "\n" for text in texts]
        try:
            append(self.path, "".join(lines))
        except OSError as error:
            tqdm.write(f"{self.path} cannot be written: {error.strerror}", file=sys.stderr)
