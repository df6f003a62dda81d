"""Records as a fine-tuned language model reads them: prompts and chats as in its training, without the answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from data.load_tokenizer import saved_tokenizer
from data.records.chat import Encoder
from data.records.forms import Chat, Text
from data.text import processor
from data.text.config import PredictFlags

PLACE = "record"  # predict.py puts the file and line before an error


class Processor(processor.Processor):
    """As for text, for every form of a record that training reads (`data.records.forms`).

    A `prompt` is what a user says if the tokenizer has a chat template. The answer (`completion`, `output`, messages of
    the assistant at the end) may be missing and is not read.

    Args:
        text_column: The key of plain text, where every record is that.
    """

    def __init__(self, tokenizer: Any, text_column: str | None = None, flags: PredictFlags | None = None):
        super().__init__(tokenizer, flags)
        self.encoder = Encoder(tokenizer, "all", text_column)

    @classmethod
    def from_pretrained(cls, folder: Path, config: Any, process: Any, flags: PredictFlags | None = None) -> Self:
        return cls(saved_tokenizer(folder, process.trust_remote_code), config.text_column, flags)

    def ids_of(self, record: dict[str, Any]) -> list[int]:
        try:
            form, _ = self.encoder.form_of(with_answer(record), PLACE)
            if isinstance(form, Text):
                return self.continued(form.text if form.prompt is None else form.prompt)
            return self.answered(form)
        except ValueError as error:
            raise ValueError(str(error).removeprefix(f"{PLACE}: ")) from None

    def answered(self, chat: Chat) -> list[int]:
        """Tokens of a chat up to where the assistant answers."""
        if not self.tokenizer.chat_template:
            raise ValueError("`messages` need a chat template, which the saved tokenizer lacks; give a `prompt`")
        count = len(chat.messages)
        while count and chat.messages[count - 1]["role"] == "assistant":
            count -= 1
        if not count:
            raise ValueError("has no message to answer")
        cut = {name: getattr(chat, name)[:count] for name in ("messages", "labels", "learned")}
        return self.encoder.question(replace(chat, **cut), PLACE)

    def continued(self, text: str) -> list[int]:
        """With the tokens that the tokenizer puts before a text, as in training, and without its end."""
        ids, _ = self.encoder.tokenized(text, PLACE, add_special_tokens=True)
        return ids[:-1] if ids[-1:] == [self.tokenizer.eos_token_id] else ids or super().continued(text)


def with_answer(record: dict[str, Any]) -> dict[str, Any]:
    """A record with an empty answer where training needs one."""
    if "prompt" in record:
        is_chat = isinstance(record["prompt"], list)
        return {**record, "completion": [{"role": "assistant", "content": ""}] if is_chat else ""}
    return {**record, "output": ""} if "instruction" in record else record
