"""From a record to token ids, and which of them are learned.

A chat is rendered by a Jinja template, and templates rarely say which characters are the assistant's. Where one marks
them ({% generation %}), its marks count. Elsewhere they are found from outside: what the conversation up to a turn
renders to, ready for an answer, is where the turn begins, and what it renders to with the turn is where it ends. Both
must be beginnings of the whole chat, or the template is refused: a guess would put loss on the wrong tokens.
"""

import contextlib
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from data.records.source import kind_of

GENERATION_MARK = re.compile(r"\{%[-+]?\s*generation\b")
# Roles that templates know; with any other it is looked whether the template kept what was said.
USUAL_ROLES = ("system", "user", "assistant", "tool")


class Encoded(NamedTuple):
    """A record's tokens.

    Attributes:
        ids: (length,) int32.
        learned: (length,) bool; the first token of a record is never learned, since nothing comes before it.
        is_open: an assistant's turn ends without a special token, so that the model would not learn to stop.
    """

    ids: np.ndarray
    learned: np.ndarray
    is_open: bool = False


class Encoder:
    """record -> `Encoded`.

    Args:
        tokenizer: of transformers, a fast one: the others do not say which characters a token stands for.
        loss_on: "assistant" or "all".
        text_column: see `source.kind_of`.
    """

    def __init__(self, tokenizer, loss_on: str, text_column: str | None):
        if not tokenizer.is_fast:
            raise ValueError(
                f"the tokenizer {tokenizer.name_or_path} has no tokenizer.json, and without it tokens cannot be found "
                "apart by characters; convert it with `AutoTokenizer.from_pretrained(…).save_pretrained(FOLDER)`"
            )
        self.tokenizer, self.loss_on, self.text_column = tokenizer, loss_on, text_column
        self.is_marked = bool(GENERATION_MARK.search(tokenizer.chat_template or ""))
        added = tokenizer.added_tokens_decoder.items()
        self.special = {*tokenizer.all_special_ids, *(number for number, token in added if token.special)}

    def __call__(self, record: object, place: str) -> Encoded:
        """Raises ValueError, one line with `place`: a malformed record, or one the template cannot render."""
        kind = kind_of(record, place, self.text_column)
        if kind == "messages":
            return self.chat(record["messages"], place)
        if kind == "text":
            return self.plain(record[self.text_column or "text"], 0)
        if self.tokenizer.chat_template:
            turns = [{"role": "user", "content": record["prompt"]}]
            return self.chat([*turns, {"role": "assistant", "content": record["completion"]}], place)
        return self.plain(record["prompt"] + record["completion"], len(record["prompt"]))

    def plain(self, text: str, begin: int) -> Encoded:
        """Text as the tokenizer frames it, ended by its end-of-text token; learned from character `begin` on."""
        found = self.tokenizer(text, return_offsets_mapping=True, verbose=False)
        ids, offsets = found["input_ids"], np.asarray(found["offset_mapping"], np.int64).reshape(-1, 2)
        learned = (offsets[:, 1] > begin) & (offsets[:, 1] > offsets[:, 0])
        if self.loss_on == "all":
            learned[:] = True
        end = self.tokenizer.eos_token_id
        if end is not None and (not ids or ids[-1] != end):
            ids, learned = [*ids, end], np.append(learned, False)
        if end is not None:
            learned[-1] = True
        return _encoded(ids, learned)

    def chat(self, messages: list[dict], place: str) -> Encoded:
        if not self.tokenizer.chat_template:
            raise ValueError(
                f"{place}: messages need a chat template, which the tokenizer lacks; give one as dataset.chat_template"
            )
        if self.loss_on == "assistant" and not any(message["role"] == "assistant" for message in messages):
            roles = ", ".join(dict.fromkeys(each["role"] for each in messages))
            raise ValueError(f"{place}: no message of the role `assistant`, only of {roles}; nothing would be learned")
        if self.loss_on == "assistant" and self.is_marked:
            return self.marked(messages, place)
        text = self.rendered(messages, place)
        self.require_all_said(messages, text, place)
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets = np.asarray(found["offset_mapping"], np.int64).reshape(-1, 2)
        if self.loss_on == "all":
            return _encoded(found["input_ids"], np.ones(len(offsets), bool))
        learned, is_open = np.zeros(len(offsets), bool), False
        for begin, end in self.turns(messages, text, place):
            # A token that begins before the turn and has its first letters is the turn's, as for transformers' marks.
            inside = np.flatnonzero((offsets[:, 1] > begin) & (offsets[:, 0] < end) & (offsets[:, 1] > offsets[:, 0]))
            kept, closed = self.up_to_the_end(inside, found["input_ids"], offsets, text[:end])
            learned[kept] = True
            is_open |= not closed
        return _encoded(found["input_ids"], learned, is_open)

    def up_to_the_end(self, inside: np.ndarray, ids: list[int], offsets: np.ndarray, text: str) -> tuple:
        """A turn's tokens without the space that a template puts after its end, and whether it has an end.

        Generation stops at the end-of-turn token, so what follows is the template's, not the assistant's.
        """
        special = [number for number in inside if ids[number] in self.special]
        if not special or text[offsets[special[-1], 1] :].strip():
            return inside, False
        return inside[inside <= special[-1]], True

    def turns(self, messages: list[dict], text: str, place: str) -> list[tuple[int, int]]:
        """(first character, end) of every assistant's turn in the rendered chat."""
        spans = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.rendered(messages[:number], place, add_generation_prompt=True)
            after = self.rendered(messages[: number + 1], place) if number + 1 < len(messages) else text
            if not (after.startswith(before) and text.startswith(after)):
                raise ValueError(
                    f"{place}: the chat template renders message {number + 1} otherwise alone than within the chat, so "
                    "its tokens cannot be identified reliably; give a template with {% generation %} marks as "
                    "dataset.chat_template, or set dataset.loss_on: all"
                )
            spans.append((len(before), len(after)))
        return spans

    def rendered(self, messages: list[dict], place: str, **options) -> str:
        with _template_errors(place):
            return self.tokenizer.apply_chat_template(messages, tokenize=False, **options)

    def marked(self, messages: list[dict], place: str) -> Encoded:
        """As `chat`, by the template's own marks."""
        with _template_errors(place):
            found = self.tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        learned = np.asarray(found["assistant_masks"], bool)
        last = np.flatnonzero(learned)[-1:]
        return _encoded(found["input_ids"], learned, not any(found["input_ids"][each] in self.special for each in last))

    def require_all_said(self, messages: list[dict], text: str, place: str) -> None:
        """A role that a template does not know it may refuse, or quietly leave out."""
        for message in messages:
            if message["role"] not in USUAL_ROLES and message["content"].strip() not in text:
                raise ValueError(f"{place}: the chat template leaves out messages of the role `{message['role']}`")


@contextlib.contextmanager
def _template_errors(place: str) -> Iterator[None]:
    """Errors of a chat template as one line with the record's place."""
    import jinja2

    try:
        yield
    except (jinja2.TemplateError, TypeError) as error:
        message_text = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{place}: the chat template cannot render these messages: {message_text}") from None


def _encoded(ids: list[int], learned: np.ndarray, is_open: bool = False) -> Encoded:
    learned[:1] = False
    return Encoded(np.asarray(ids, np.int32), learned, is_open)
