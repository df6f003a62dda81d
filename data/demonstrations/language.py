"""Instructions and reasoning as token ids, for policies with a language model.

Shapes: B samples, L prompt tokens, T target tokens, S state dimensions, N steps of a source.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.demonstrations.config import Config, reads_tokens
from data.demonstrations.lerobot.policy import backbone_of_policy
from data.demonstrations.source import EpisodeSource
from data.load_tokenizer import load_tokenizer, saved_tokenizer
from data.statistics import Normalizer
from data.text.tokenizers import vocabulary_size
from storage.suggestions import did_you_mean

MARK = re.compile(r"<seg>(.*?)</seg>", re.DOTALL)
STATE_BINS = 256  # of the text of a state, over [-1, 1], as in pi0.5 (arXiv:2504.16054)
MOST_KNOWN = 20_000  # texts whose tokens are remembered
SUBTASK = "subtask: "  # what begins the line of the subtask in a reasoning of several entries
BLOCK = 4096  # texts that are tokenised at a time
PROMPT = ("prompt_ids", "prompt_mask")
SWITCHES = ("use_prev_subtask", "use_reasoning", "select_seg_token_mask")


@dataclass
class PromptTokenizer:
    """Makes prompts and targets of texts, and remembers the tokens of each text.

    Prompts are padded on the tokenizer's side, targets always on the right. Masks say which tokens exist, so the
    padding token may be the one that ends a text.

    Args:
        prompt, max_prompt_tokens, max_target_tokens: See `Config`.
        prompt_tokens, target_tokens: Width of prompts and targets; a batch with a longer prompt is wider.
        feeds_back: The policy writes its subtasks, and the previous one in its prompt is of those.
    """

    tokenizer: Any
    prompt: str
    max_prompt_tokens: int
    max_target_tokens: int
    use_prev_subtask: bool
    use_reasoning: bool
    select_seg_token_mask: bool
    prompt_tokens: int = 0
    target_tokens: int = 0
    feeds_back: bool = False
    prompts: dict[str, list[int]] = field(default_factory=dict, repr=False)
    targets: dict[str, tuple[list[int], list[bool]]] = field(default_factory=dict, repr=False)

    def __post_init__(self):
        # Worker processes are forked from this one; threads of the tokenizer do not survive that.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        ids = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        self.pad = next(number for number in ids if number is not None)
        self.ends_texts = self.tokenizer("a")["input_ids"][-1:] == [self.tokenizer.eos_token_id]

    def settings(self) -> dict[str, Any]:
        """What is saved in statistics.json: the arguments without the tokenizer."""
        names = ("prompt", "max_prompt_tokens", "max_target_tokens", "prompt_tokens", "target_tokens", "feeds_back")
        return {name: getattr(self, name) for name in (*names, *SWITCHES)}

    def dims(self) -> dict[str, int | None]:
        """Sizes for the model."""
        sizes = {"vocab_size": vocabulary_size(self.tokenizer), "eos_token_id": self.tokenizer.eos_token_id}
        return {**sizes, "target_tokens": self.target_tokens}

    @property
    def reads_state(self) -> bool:
        return "{state}" in self.prompt

    def text(self, instruction: str, state: np.ndarray) -> str:
        """The prompt of an instruction and a normalised state (S,)."""
        text = self.prompt.replace("{state}", state_text(state)) if self.reads_state else self.prompt
        return text.replace("{instruction}", instruction)

    def __call__(
        self, instructions: Sequence[str], states: np.ndarray, reasoning: Sequence[str] = ()
    ) -> dict[str, torch.Tensor]:
        """Tokens of a batch.

        Args:
            instructions, reasoning: B texts.
            states: (B, S) normalised.

        Returns:
            prompt_ids (B, L) int64, prompt_mask (B, L) bool: tokens that exist; with reasoning target_ids (B, T) int64,
            target_mask (B, T), and target_loss_mask (B, T) bool: tokens that carry loss.
        """
        texts = [self.text(*pair) for pair in zip(instructions, states, strict=True)]
        batch = self.padded_prompts([row[: self.max_prompt_tokens] for row in self.prompt_rows(texts)])
        if reasoning:
            ids, loss = zip(*(self.target_row(text) for text in reasoning), strict=True)
            ids, loss = ([cut(row, self.max_target_tokens) for row in rows] for rows in (ids, loss))
            width = max(self.target_tokens, *map(len, ids))
            batch["target_ids"], batch["target_mask"] = padded(ids, width, self.pad)
            batch["target_loss_mask"], _ = padded(loss, width, False)
        return batch

    def prompt_rows(self, texts: Sequence[str]) -> list[list[int]]:
        """All tokens of each text, with those that the tokenizer puts before a text, without the one that ends it.

        The token that begins a text appears once, where both the template and the tokenizer have it.
        """
        unknown = [text for text in dict.fromkeys(texts) if text not in self.prompts]
        if len(self.prompts) + len(unknown) > MOST_KNOWN:
            self.prompts, unknown = {}, [*dict.fromkeys(texts)]
        if unknown:
            rows = self.tokenizer(unknown, verbose=False)["input_ids"]
            twice = [self.tokenizer.bos_token_id] * 2
            rows = [row[row[:2] == twice : len(row) - self.ends_texts] for row in rows]
            self.prompts |= dict(zip(unknown, rows, strict=True))
        return [self.prompts[text] for text in texts]

    def target_row(self, text: str) -> tuple[list[int], list[bool]]:
        """All tokens of a target, the last ends the text, and which of them carry loss."""
        if text not in self.targets:
            plain, spans = marked(text)
            selects = self.select_seg_token_mask
            coded = self.tokenizer(plain, add_special_tokens=False, return_offsets_mapping=selects, verbose=False)
            loss = [True] * len(coded["input_ids"])
            if selects:
                loss = [any(a < end and b > start for start, end in spans) for a, b in coded["offset_mapping"]]
            if len(self.targets) >= MOST_KNOWN:
                self.targets.clear()
            # Where the text ends is always learnt: otherwise a generated one would not stop.
            self.targets[text] = [*coded["input_ids"], self.tokenizer.eos_token_id], [*loss, True]
        return self.targets[text]

    def padded_prompts(self, rows: list[list[int]]) -> dict[str, torch.Tensor]:
        width = max(self.prompt_tokens, *map(len, rows))
        ids, mask = padded(rows, width, self.pad, self.tokenizer.padding_side == "left")
        return {"prompt_ids": ids, "prompt_mask": mask}

    def joined(self, inputs: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """One batch of the prompts of several, which may differ in width."""
        rows = [ids[mask].tolist() for each in inputs for ids, mask in zip(*map(each.get, PROMPT), strict=True)]
        return self.padded_prompts(rows)

    def live(self, instruction: str, state: np.ndarray) -> dict[str, torch.Tensor]:
        """The prompt (1, L) of a policy at work; warns where it is cut."""
        text = self.text(instruction, state)
        length = len(self.prompt_rows([text])[0])
        if length > self.max_prompt_tokens:
            line = f"the prompt of `{instruction}` has {length} tokens and is cut to dataset.max_prompt_tokens"
            warnings.warn(f"{line} {self.max_prompt_tokens}", stacklevel=2)
        return self([instruction], state[None])

    def decode(self, ids: torch.Tensor) -> list[str]:
        """The texts of generated targets (B, T), each up to where it ends."""
        return self.tokenizer.batch_decode(ids, skip_special_tokens=True)


def cut(row: list, most: int) -> list:
    """A row without what is before its last entry and too much."""
    return row if len(row) <= most else [*row[: most - 1], row[-1]]


def padded(rows: list[list], width: int, pad: int | bool, left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as a tensor (B, width), and which of its entries exist (B, width) bool."""
    lengths, places = torch.tensor([len(row) for row in rows])[:, None], torch.arange(width)
    mask = places >= width - lengths if left else places < lengths
    values = torch.full((len(rows), width), pad)
    values[mask] = torch.tensor([entry for row in rows for entry in row], dtype=values.dtype)
    return values, mask


def marked(text: str) -> tuple[str, list[tuple[int, int]]]:
    """A text without its <seg> marks, and the first and last place of each marked part; ValueError for a lone mark."""
    plain, spans, last = "", [], 0
    for match in MARK.finditer(text):
        plain += text[last : match.start()]
        spans.append((len(plain), len(plain) + len(match[1])))
        plain, last = plain + match[1], match.end()
    plain += text[last:]
    if "<seg>" in plain or "</seg>" in plain:
        raise ValueError(f"the text `{text}` has a <seg> or </seg> without its other; marks come in pairs")
    return plain, spans


def state_text(state: np.ndarray) -> str:
    """A normalised state (S,) as numbers 0 … 255 with spaces between; values beyond [-1, 1] are in the outer bins."""
    bins = np.floor((state.reshape(-1) + 1) / 2 * STATE_BINS)
    return " ".join(str(number) for number in np.clip(bins, 0, STATE_BINS - 1).astype(int))


def previous_subtasks(codes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """(N,) code of the last subtask before each step that differs from the step's own; 0 is no subtask."""
    previous = np.zeros_like(codes)
    for start, end in zip(offsets[:-1], offsets[1:], strict=True):
        own = codes[start:end]
        firsts = [0, *(np.flatnonzero(own[1:] != own[:-1]) + 1).tolist()]
        for number, first in enumerate(firsts):
            seen = own[firsts[:number]][::-1]
            previous[start + first : end] = last_other(seen.tolist(), own[first]) or 0
    return previous


def known_subtasks(codes: np.ndarray, offsets: np.ndarray, most: int) -> np.ndarray:
    """(N,) like `previous_subtasks`, as a policy knows it that wrote its last text 1 to `most` steps before.

    At work a policy reads its prompt before it writes the current subtask. A prompt that knew it in training would give
    it away, and a policy that relies on that never goes on to the next one.
    """
    steps, starts = np.arange(len(codes)), np.repeat(offsets[:-1], np.diff(offsets))
    written = steps - np.random.default_rng(0).integers(1, most + 1, len(codes))
    return np.where(written < starts, 0, previous_subtasks(codes, offsets)[written])


def prompted_subtasks(source: EpisodeSource, prompts: PromptTokenizer | None, chunk_size: int) -> np.ndarray:
    """(N,) code of the previous subtask in the prompt of each step of a source."""
    codes, offsets = source.arrays["subtask"], source.arrays["offsets"]
    if prompts is not None and prompts.feeds_back:
        return known_subtasks(codes, offsets, chunk_size)
    return previous_subtasks(codes, offsets)


def subtask_in(reasoning: str) -> str:
    """The subtask in a reasoning without marks: the line that names it, else the whole text."""
    lines = reasoning.split("\n")
    return next((line.removeprefix(SUBTASK) for line in lines if line.startswith(SUBTASK)), reasoning).strip()


def has_its_subtasks(source: EpisodeSource) -> bool:
    """Whether each step's subtask is found in its reasoning."""
    vocabulary = source.details["vocabulary"]
    pairs = np.unique(np.stack([source.arrays[kind] for kind in ("reasoning", "subtask")], axis=1), axis=0)
    return all(
        subtask_in(marked(vocabulary[reasoning])[0]) == marked(vocabulary[subtask])[0].strip()
        for reasoning, subtask in pairs
    )


def last_other(newest_first: Sequence, current: Any) -> Any:
    """The first of some subtasks that is neither empty nor the current one, or None."""
    return next((each for each in newest_first if each and each != current), None)


def with_previous(instruction: str, subtask: str | None) -> str:
    """An instruction with the previous subtask, if there is one."""
    return f"{instruction} Previous subtask: {marked(subtask)[0]}" if subtask else instruction


def tokenizer_of(config: Config, run: Any) -> Any:
    """The tokenizer of `dataset.tokenizer` or of the base model; ValueError if it has no end."""
    process = run.process
    place = config.tokenizer or backbone_of_policy(process) or process.model_name_or_path
    tokenizer = load_tokenizer(place, Path(run.cache_dir), process.cache_dir, process.trust_remote_code)
    if process.use_reasoning and tokenizer.eos_token_id is None:
        remedy = "set one in its tokenizer_config.json"
        raise ValueError(f"use_reasoning: the tokenizer of {place} has no eos_token, which ends a text; {remedy}")
    if process.select_seg_token_mask and not tokenizer.is_fast:
        raise ValueError(f"select_seg_token_mask: the tokenizer of {place} has no fast version (tokenizer.json)")
    return tokenizer


def prompts_of(
    config: Config, run: Any, sources: list[EpisodeSource], statistics: dict[str, Any]
) -> tuple[PromptTokenizer | None, list[str]]:
    """The tokenizer of a run's texts, whose settings are added to the statistics, and lines for people.

    None if the model reads no tokens. Of a model that is scored (`run.trained_in`) it is that of its training.

    Raises:
        ValueError: there is no tokenizer, or the texts are not what the configuration asks for.
    """
    if not reads_tokens(run):
        return None, []
    instructions = {text for source in sources for text in texts_of(source, "instruction")} - {""}
    if not instructions:
        places = ", ".join(source.path for source in sources)
        raise ValueError(f"no episode in {places} has an instruction, which the model reads; record with instructions")
    if getattr(run, "trained_in", None) is not None:
        return saved_prompts(run.trained_in, run.process, statistics), []
    refuse_phrasings(config, instructions)
    switches = {name: getattr(run.process, name) for name in SWITCHES}
    limits = config.max_prompt_tokens, config.max_target_tokens
    prompts = PromptTokenizer(tokenizer_of(config, run), config.prompt, *limits, **switches)
    lines = []
    if prompts.use_reasoning:
        prompts.target_tokens, line = fitted(target_lengths(prompts, sources), prompts.max_target_tokens, "target")
        lines.append(line)
        prompts.feeds_back = prompts.use_prev_subtask and all(map(has_its_subtasks, sources))
    state = Normalizer.from_dict(statistics["state"], "`state`")
    lengths = prompt_lengths(prompts, config, sources, state)
    prompts.prompt_tokens, line = fitted(lengths, prompts.max_prompt_tokens, "prompt")
    lines.insert(0, line)
    statistics["observation"]["language"] = prompts.settings()
    return prompts, lines


def saved_prompts(folder: Path, process: Any, statistics: dict[str, Any]) -> PromptTokenizer | None:
    """The tokenizer beside a model, with the settings in its statistics; None of a model that reads no tokens."""
    try:
        saved = statistics["observation"].get("language")
        return PromptTokenizer(saved_tokenizer(folder, process.trust_remote_code), **saved) if saved else None
    except (KeyError, TypeError, AttributeError):  # `ObservationEncoder.from_files` says what is damaged
        return None


def fitted(lengths: np.ndarray, most: int, kind: str) -> tuple[int, str]:
    """The width that texts of these lengths need, and the line that says how many are cut."""
    width, cut = min(int(lengths.max()), most), int((lengths > most).sum())
    line = f"{kind}s have at most {width} tokens"
    if cut:
        are_cut = f"{cut} of {len(lengths)} {kind}s are cut to {most} tokens (the longest has {lengths.max()})"
        line = f"{are_cut}; raise dataset.max_{kind}_tokens"
    return width, line


def refuse_phrasings(config: Config, instructions: set[str]) -> None:
    """Raise ValueError if `dataset.phrasings` rewords an instruction that no episode has."""
    for text in config.phrasings:
        if text.strip() not in instructions:
            hint = did_you_mean(text, instructions, f"; they have {', '.join(sorted(instructions)[:5])}")
            raise ValueError(f"dataset.phrasings: no episode has the instruction `{text}`{hint}")


def texts_of(source: EpisodeSource, kind: str) -> list[str]:
    """Each different text of a kind."""
    codes = np.unique(source.arrays[kind]) if kind in source.arrays else ()
    return [source.details["vocabulary"][code].strip() for code in codes]


def prompt_lengths(
    tokenizer: PromptTokenizer, config: Config, sources: list[EpisodeSource], state: Normalizer
) -> np.ndarray:
    """Tokens of each different prompt; with the state in it, of that of each step."""
    lengths = []
    for source in sources:
        for instructions, states in instructions_of(source, tokenizer, config):
            texts = [tokenizer.text(*pair) for pair in zip(instructions, state.encode(states), strict=True)]
            lengths += map(len, tokenizer.prompt_rows(texts))
    return np.array(lengths)


def instructions_of(
    source: EpisodeSource, tokenizer: PromptTokenizer, config: Config
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yield blocks of instructions and the states (block, n_obs_steps, S) to which they belong."""
    vocabulary, offsets = source.details["vocabulary"], source.arrays["offsets"]
    count, starts = int(offsets[-1]), np.repeat(offsets[:-1], np.diff(offsets))
    codes = [source.arrays.get("instruction", np.zeros(count, np.int32))]
    if tokenizer.use_prev_subtask:
        codes.append(prompted_subtasks(source, tokenizer, config.chunk_size))
    pairs = np.stack(codes, axis=1)  # (N, 1 or 2)
    rows = np.arange(count) if tokenizer.reads_state else np.unique(pairs, axis=0, return_index=True)[1]
    for first in range(0, len(rows), BLOCK):
        texts, places = [], []
        for row in rows[first : first + BLOCK]:
            instruction, *subtask = (vocabulary[code] for code in pairs[row])
            for phrasing in (instruction, *config.phrasings.get(instruction.strip(), ())):
                texts.append(with_previous(phrasing, *subtask or [None]).strip())
                places.append(row)
        observed = np.maximum(np.array(places)[:, None] + np.arange(1 - config.n_obs_steps, 1), starts[places, None])
        yield texts, source.arrays["states"][observed]


def target_lengths(tokenizer: PromptTokenizer, sources: list[EpisodeSource]) -> np.ndarray:
    """Tokens of each different target, with the one that ends it, before anything is cut."""
    texts = {text: source for source in sources for text in texts_of(source, "reasoning")}
    lengths = []
    for text, source in texts.items():
        try:
            lengths.append(len(tokenizer.target_row(text)[0]))
        except ValueError as error:
            raise ValueError(f"{source.path}: {error}") from None
    if tokenizer.select_seg_token_mask and not any(map(MARK.search, texts)):
        raise ValueError(
            f"select_seg_token_mask is true but no reasoning in {', '.join(source.path for source in sources)} marks a "
            "part as <seg>…</seg>; mark what carries loss, or set select_seg_token_mask: false"
        )
    return np.array(lengths)
