"""Prompts and chats in, what a language model writes after them out: JSON lines, or lines of plain text.

A prediction is a function of the weights, the prompt, the seed and the number of the sample; neither the batch nor
other inputs change it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

from data import processor
from data.load_tokenizer import saved_tokenizer
from data.processor import Item, Source
from data.strict_json import parsed
from data.text.config import PredictFlags
from data.text.generation import Continuation, generate, prompt_ids, room_after

WRITTEN = ("prediction", "finish_reason", "sample", "source")  # keys of an output record besides the input's


class Line(NamedTuple):
    source: str  # FILE:LINE, as it stands in the output
    content: bytes
    is_json: bool


class Prompt(NamedTuple):
    record: dict[str, Any]
    source: str
    ids: list[int]


class Processor(processor.Processor):
    """Generates text with the tokenizer saved beside the model.

    Inputs, one a line: {"prompt": …} or {"text": …}, which the model continues; {"messages": […]} and perhaps "tools",
    which it answers as the assistant; a line of a .txt file. Further keys are copied to the output.
    """

    SUFFIXES = (".jsonl", ".jsonl.gz", ".txt")
    TO_STDOUT = True

    def __init__(self, tokenizer: Any, flags: PredictFlags | None = None):
        self.tokenizer, self.flags = tokenizer, flags or PredictFlags()
        self.ends = {tokenizer.eos_token_id, end_of_turn(tokenizer)} - {None}

    @classmethod
    def from_pretrained(cls, folder: Path, config: Any, process: Any, flags: PredictFlags | None = None) -> Self:
        """See `data.processor`; ValueError if no single tokenizer is saved in the folder."""
        return cls(saved_tokenizer(folder, process.trust_remote_code), flags)

    def save_pretrained(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)

    def count(self, source: Source) -> int:
        with source.open() as stream:
            return sum(block.count(b"\n") for block in iter(lambda: stream.read(2**20), b""))

    def read(self, source: Source) -> Iterator[Item]:
        """Lines that are not blank. Standard input is JSON if its first such line begins with `{`."""
        is_json = None if source.path is None else not source.name.endswith(".txt")
        is_empty = True
        with source.open() as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    is_empty = False
                    is_json = line.lstrip(b"\xef\xbb\xbf \t").startswith(b"{") if is_json is None else is_json
                    yield Item(source, f"{source}:{number}", Line(f"{source.name}:{number}", line, is_json))
        if is_empty:
            raise ValueError("holds no line; give one prompt or record a line")

    def encode(self, raw: Line) -> Prompt:
        try:
            text = raw.content.decode("utf-8-sig").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"not UTF-8 text ({error.reason} at byte {error.start})") from None
        if not raw.is_json:
            return Prompt({"text": text}, raw.source, self.continued(text))
        try:
            record = parsed(text)
        except ValueError as error:
            raise ValueError(f"not JSON ({error}); each line is one JSON object") from None
        if not isinstance(record, dict):
            raise ValueError("not a JSON object")
        if used := [name for name in WRITTEN if name in record]:
            raise ValueError(f"has a key `{used[0]}`, which predictions are written to; rename it")
        return Prompt(record, raw.source, self.ids_of(record))

    def ids_of(self, record: dict[str, Any]) -> list[int]:
        """What the model reads of a record."""
        if "messages" in record:
            return self.answered(record)
        for key in ("prompt", "text"):
            if key in record:
                return self.continued(text_at(record, key))
        raise ValueError(f"has neither `messages` nor `prompt` nor `text` (its keys: {', '.join(record) or 'none'})")

    def continued(self, text: str) -> list[int]:
        """Tokens of a text to continue."""
        return prompt_ids(self.tokenizer, text)

    def answered(self, record: dict[str, Any]) -> list[int]:
        """Tokens of a chat up to where the assistant answers; answers at its end are reference, not shown."""
        messages = record["messages"]
        if not isinstance(messages, list) or not all(isinstance(each, dict) and "role" in each for each in messages):
            raise ValueError("`messages` must be a list of objects with `role` and `content`")
        while messages and messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        if not messages:
            raise ValueError("`messages` has no message to answer")
        options = {"tools": record.get("tools"), **(record.get("chat_template_kwargs") or {})}
        return render_chat(self.tokenizer, messages, **options)

    def check(self, model: Any, inputs: Prompt) -> None:
        room_after(model, inputs.ids, self.flags.max_new_tokens)

    def predict(self, model: Any, inputs: list[Prompt]) -> list[tuple[Prompt, list[Continuation]]]:
        """The samples of each prompt; at most as many texts at a time as there are prompts."""
        flags, size = self.flags, len(inputs)
        rows = [(prompt.ids, number) for prompt in inputs for number in range(flags.samples)]
        pad = self.tokenizer.pad_token_id
        pad = next(iter(self.ends), 0) if pad is None else pad
        found: list[Continuation] = []
        for first in range(0, len(rows), size):
            prompts, numbers = zip(*rows[first : first + size], strict=True)
            found += generate(model, list(prompts), flags, self.ends, pad, list(numbers))
        return [(prompt, found[i * flags.samples : (i + 1) * flags.samples]) for i, prompt in enumerate(inputs)]

    def decode(self, outputs: list[tuple[Prompt, list[Continuation]]]) -> list[list[dict[str, Any]]]:
        """For each input its output lines, one a sample."""
        return [[self.record(prompt, number, text) for number, text in enumerate(texts)] for prompt, texts in outputs]

    def record(self, prompt: Prompt, number: int, text: Continuation) -> dict[str, Any]:
        before, whole = (self.tokenizer.decode(ids) for ids in (text.prompt, [*text.prompt, *text.tokens]))
        # Alone, the new tokens may lose the space between words, which belongs to the first of them.
        written = whole.removeprefix(before) if whole.startswith(before) else self.tokenizer.decode(text.tokens)
        record = {**prompt.record, "prediction": written, "finish_reason": "stop" if text.ended else "length"}
        return record | ({"sample": number} if self.flags.samples > 1 else {}) | {"source": prompt.source}

    def writer(self, target: Path | BinaryIO) -> JsonLines:
        return JsonLines(target)


class JsonLines:
    """Writes records as JSON, one a line; see `data.processor.Writer`."""

    def __init__(self, target: Path | BinaryIO):
        self.is_file = isinstance(target, Path)
        self.stream = target.open("wb") if isinstance(target, Path) else target

    def write(self, source: Source, record: list[dict[str, Any]]) -> None:
        for line in record:
            # Half of a surrogate pair, which JSON can spell and UTF-8 cannot, becomes JSON's \\udXXX.
            content = json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace")
            self.stream.write(content + b"\n")
        self.stream.flush()

    def close(self) -> None:
        if self.is_file:
            self.stream.close()


def text_at(record: dict[str, Any], key: str) -> str:
    if not isinstance(record[key], str):
        raise ValueError(f"`{key}` is not text")
    return record[key]


def render_chat(tokenizer: Any, messages: list[dict[str, Any]], **options: Any) -> list[int]:
    """Token ids of a chat, ready for the assistant's answer; ValueError if the template cannot render it."""
    import jinja2

    if not tokenizer.chat_template:
        raise ValueError("`messages` need a chat template, which the saved tokenizer lacks; give a `prompt`")
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"the chat template cannot render `messages`: {reason}") from None
    return prompt_ids(tokenizer, text)


def end_of_turn(tokenizer: Any) -> int | None:
    """The special token with which the chat template ends what the assistant says; None: there is none."""
    import jinja2

    if not tokenizer.chat_template:
        return None
    answer = "Berenice 1879"
    messages = [{"role": "user", "content": "Who"}, {"role": "assistant", "content": answer}]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError):
        return None
    if answer not in text:
        return None
    added = tokenizer.added_tokens_decoder.items()
    special = {*tokenizer.all_special_ids, *(number for number, token in added if token.special)}
    rest = tokenizer(text[text.rfind(answer) + len(answer) :], add_special_tokens=False)["input_ids"]
    return next((token for token in rest if token in special), None)
