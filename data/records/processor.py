"""Records as a fine-tuned language model reads them: prompts and chats as in its training, without the answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from data.text import processor
from data.text.predict_flags import PredictFlags
from data.text.processor import render_chat, saved_tokenizer, text_at


class Processor(processor.Processor):
    """As for text, but a `prompt` is what a user says where the tokenizer has a chat template.

    Args:
        text_column: The key of plain text, where every record is that.
    """

    def __init__(self, tokenizer: Any, text_column: str | None = None, flags: PredictFlags | None = None):
        super().__init__(tokenizer, flags)
        self.text_column = text_column

    @classmethod
    def from_pretrained(cls, folder: Path, config: Any, process: Any, flags: PredictFlags | None = None) -> Self:
        return cls(saved_tokenizer(folder, process.trust_remote_code), config.text_column, flags)

    def ids_of(self, record: dict[str, Any]) -> list[int]:
        if self.text_column is not None and self.text_column in record:
            return self.continued(text_at(record, self.text_column))
        if "prompt" in record and "messages" not in record and self.tokenizer.chat_template:
            return render_chat(self.tokenizer, [{"role": "user", "content": text_at(record, "prompt")}])
        return super().ids_of(record)

    def continued(self, text: str) -> list[int]:
        """With the tokens that the tokenizer puts before a text, as in training, and without its end."""
        ids = self.tokenizer(text, verbose=False)["input_ids"]
        return ids[:-1] if ids[-1:] == [self.tokenizer.eos_token_id] else ids or super().continued(text)
