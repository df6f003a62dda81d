"""Text that a language model writes while it trains: whenever the validation loss is the best so far."""

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

from .run_folder import drop_later_lines

FILE = "samples.jsonl"


@dataclass(frozen=True)
class Sampling:
    """How to sample.

    Attributes:
        tokens: New tokens.
        prompt: Text to go on from.
        count: Samples each time.
        temperature: 0 takes the likeliest token always.
        top_k: Only the k likeliest tokens; None: all.
    """

    tokens: int
    prompt: str = "\n"
    count: int = 1
    temperature: float = 0.8
    top_k: int | None = 200


def sample_texts(model: Any, tokenizer: Any, sampling: Sampling, seed: int) -> list[str]:
    """`sampling.count` texts, each the prompt and what follows; the same for the same weights and seed.

    The generators that training draws from are left as they were.

    Raises:
        ValueError: the prompt has no tokens, or characters that the tokenizer does not know.
    """
    prompt = prompt_ids(tokenizer, sampling.prompt)
    device = next(model.parameters()).device
    ids = torch.tensor([prompt] * sampling.count, device=device)
    choice = {"do_sample": True, "temperature": sampling.temperature, "top_k": sampling.top_k}
    if sampling.temperature == 0:
        choice = {"do_sample": False}
    if isinstance(model.get_base_model() if hasattr(model, "get_base_model") else model, GenerationMixin):
        # Left to themselves they take the padding token inside a prompt for padding.
        choice |= {"attention_mask": torch.ones_like(ids), "pad_token_id": tokenizer.eos_token_id or 0}
    was_training = model.training
    model.eval()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
        torch.manual_seed(seed)
        written = model.generate(input_ids=ids, max_new_tokens=sampling.tokens, **choice)
    model.train(was_training)
    return [tokenizer.decode(each) for each in written.tolist()]


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """The prompt's token ids; that of the beginning (or end) of a text where it is empty."""
    try:
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    except Exception as error:  # tokenizers raises bare exceptions
        raise ValueError(f"`sample_prompt: {prompt!r}` cannot be read by the tokenizer: {error}") from error
    special = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    ids = ids or ([] if special is None else [special])
    if not ids:
        raise ValueError(f"`sample_prompt: {prompt!r}` has no token to go on from; give some text")
    return ids


class WriteSamples(TrainerCallback):
    """Prints samples and adds them to OUT/samples.jsonl, a line each: `{"step", "eval_loss", "text"}`.

    Args:
        model: The model itself, not what wraps it for training.
        folder: The run's folder.
        seed: Of the run; each step samples with its own.
    """

    def __init__(self, model: Any, tokenizer: Any, sampling: Sampling, folder: Path, seed: int):
        self.model, self.tokenizer, self.sampling = model, tokenizer, sampling
        self.path, self.seed = folder / FILE, seed

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            drop_later_lines(self.path, state.global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        loss = metrics.get("eval_loss", math.nan)
        earlier = [line["eval_loss"] for line in state.log_history if "eval_loss" in line]
        is_best = math.isfinite(loss) and all(not loss > other for other in earlier)
        if not (is_best and state.is_world_process_zero and state.global_step):
            return
        texts = sample_texts(self.model, self.tokenizer, self.sampling, self.seed + state.global_step)
        with open(self.path, "a", encoding="utf-8") as file:
            for text in texts:
                file.write(json.dumps({"step": state.global_step, "eval_loss": loss, "text": text}) + "\n")
                tqdm.write(f"sample at step {state.global_step}: {text}", file=sys.stderr)
