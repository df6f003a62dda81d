"""Encode records as token ids, and determine which of them carry loss."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from data.records.forms import TEMPLATE_INPUTS, Chat, Text, as_chat, read_form
from data.records.turns import MarkedChat, Message, with_function

GENERATION_MARK = re.compile(r"\{%[-+]?\s*generation\b")


class Encoded(NamedTuple):
    """A record's tokens.

    Attributes:
        ids: (length,) int32.
        learned: (length,) bool, whether a token carries loss; a record's first token never does.
        is_open: Whether an assistant's turn ends without a special token, so that the model would not learn to stop.
        unread: Keys of the record that make no difference to the text.
        is_renamed: Whether `developer` messages are rendered as `system`, because the template does not know the role.
    """

    ids: np.ndarray
    learned: np.ndarray
    is_open: bool = False
    unread: frozenset[str] = frozenset()
    is_renamed: bool = False


class Encoder:
    """record -> `Encoded`.

    Args:
        tokenizer: Of transformers, a fast one: the others do not say which characters a token stands for.
        loss_on: "assistant" or "all".
        text_column: See `forms.read_form`.
    """

    def __init__(self, tokenizer, loss_on: str, text_column: str | None):
        if not tokenizer.is_fast:
            remedy = "convert it with `AutoTokenizer.from_pretrained(…).save_pretrained(FOLDER)`"
            raise ValueError(f"tokenizer {tokenizer.name_or_path} has no tokenizer.json, which records need; {remedy}")
        self.tokenizer, self.loss_on, self.text_column = tokenizer, loss_on, text_column
        added = tokenizer.added_tokens_decoder.items()
        self.special = {*tokenizer.all_special_ids, *(number for number, token in added if token.special)}

    def __call__(self, record: object, place: str) -> Encoded:
        """Encode a record; raise ValueError, one line with `place`, if it is malformed or cannot be rendered."""
        form, unread = self.form_of(record, place)
        encoded = self._plain(form, place) if isinstance(form, Text) else self._chat(form, place)
        return encoded._replace(unread=encoded.unread | unread)

    def form_of(self, record: object, place: str) -> tuple[Text | Chat, set[str]]:
        """As `forms.read_form`; a prompt is a chat if the tokenizer has a template for it."""
        form, unread = read_form(record, place, self.text_column)
        if isinstance(form, Text) and form.prompt is not None and self.tokenizer.chat_template:
            form = as_chat(form)
        return form, unread

    def _plain(self, form: Text, place: str) -> Encoded:
        """Text as the tokenizer frames it, ended by its end-of-text token."""
        prompt = form.prompt or ""
        ids, offsets = self.tokenized(prompt + form.text, place, add_special_tokens=True)
        learned = (offsets[:, 1] > len(prompt)) & (offsets[:, 1] > offsets[:, 0])
        if self.loss_on == "all":
            learned[:] = True
        end = self.tokenizer.eos_token_id
        if end is not None and (not ids or ids[-1] != end):
            ids, learned = [*ids, end], np.append(learned, False)
        if end is not None:
            learned[-1] = True
        return _encoded(ids, learned)

    def _chat(self, chat: Chat, place: str) -> Encoded:
        if not self.tokenizer.chat_template:
            raise ValueError(f"{place}: the tokenizer has no chat template for messages; set dataset.chat_template")
        roles = [message["role"] for message in chat.messages]
        if self.loss_on == "assistant" and "assistant" not in roles:
            roles = ", ".join(dict.fromkeys(roles))
            raise ValueError(f"{place}: no message of the role `assistant`, only of {roles}; nothing would be learned")
        variant, encoded = self._rendered(chat, place, RenderedChat.encoded)
        return encoded._replace(is_renamed=roles != [message["role"] for message in variant.messages])

    def question(self, chat: Chat, place: str) -> list[int]:
        """Token ids of a chat up to where the assistant answers; raises ValueError as `__call__`."""
        return self._rendered(chat, place, RenderedChat.question)[1]

    def _rendered(self, chat: Chat, place: str, use: Callable[[RenderedChat], Any]) -> tuple[Chat, Any]:
        """The first variant of a chat that the template renders, and what `use` makes of it."""
        problem = None
        for variant in _variants(chat):
            try:
                return variant, use(RenderedChat(self, variant, place))
            except ValueError as error:
                problem = error
        raise problem

    def tokenized(self, text: str, place: str, add_special_tokens: bool) -> tuple[list[int], np.ndarray]:
        """Token ids and their characters, (length, 2): first and end."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{place}: holds half a character (U+{ord(text[error.start]):04X}); correct it") from None
        tokens = self.tokenizer(text, add_special_tokens=add_special_tokens, return_offsets_mapping=True, verbose=False)
        return tokens["input_ids"], np.asarray(tokens["offset_mapping"], np.int64).reshape(-1, 2)


def _variants(chat: Chat) -> Iterator[Chat]:
    """The chat, then the same chat in older words, for templates that refuse or leave out the newer ones."""
    yield chat
    messages = [{**message, "role": message["role"].replace("developer", "system")} for message in chat.messages]
    if messages != chat.messages:
        yield replace(chat, messages=messages)
    if any("tool_calls" in message for message in messages):
        yield replace(chat, messages=[_with_text_arguments(message) for message in messages])


def _with_text_arguments(message: Message) -> Message:
    if "tool_calls" not in message:
        return message
    arguments = [call.get("function", call).get("arguments") for call in message["tool_calls"]]
    texts = [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in arguments]
    calls = zip(message["tool_calls"], texts, strict=True)
    return {**message, "tool_calls": [with_function(call, arguments=text) for call, text in calls]}


class RenderedChat:
    """A chat as text, its tokens, and its assistant's turns in both."""

    def __init__(self, encoder: Encoder, chat: Chat, place: str):
        self.encoder, self.chat, self.place = encoder, chat, place
        self.text = self._render(chat.messages, False)
        self.ids, self.offsets = encoder.tokenized(self.text, place, add_special_tokens=False)
        special = encoder.special
        self.special = [tuple(span) for span, number in zip(self.offsets, self.ids, strict=True) if number in special]
        self.marked = MarkedChat(chat.messages, self.text, self._render)

    def encoded(self) -> Encoded:
        self._require_all_rendered()
        encoder = self.encoder
        learned, is_open = np.full(len(self.ids), encoder.loss_on == "all"), False
        template = encoder.tokenizer.get_chat_template(tools=self.chat.inputs.get("tools"))
        if encoder.loss_on == "assistant" and GENERATION_MARK.search(template):
            marks = self._apply(self.chat.messages, return_dict=True, return_assistant_tokens_mask=True)
            learned = np.asarray(marks["assistant_masks"], bool)
            is_open = any(self.ids[last] not in encoder.special for last in np.flatnonzero(learned)[-1:])
        elif encoder.loss_on == "assistant":
            for tokens, is_closed in self._turns(is_learned=True):
                learned[tokens] = True
                is_open |= not is_closed
        for tokens, _ in self._turns(is_learned=False):
            learned[tokens] = False
        return _encoded(self.ids, learned, is_open)._replace(unread=frozenset(self._unread()))

    def question(self) -> list[int]:
        """Token ids of the chat, ready for the assistant's answer."""
        self._require_all_rendered()
        return self.encoder.tokenized(self._render(self.chat.messages, True), self.place, add_special_tokens=False)[0]

    def _turns(self, is_learned: bool) -> Iterator[tuple[np.ndarray, bool]]:
        """(tokens, whether an end-of-turn token ends them) of the assistant's turns that carry loss, or of the others.

        A token that begins before the turn and has its first letters is the turn's, as for transformers' marks.
        """
        offsets = self.offsets
        for number, (message, label) in enumerate(zip(self.chat.messages, self.chat.labels, strict=True)):
            if message["role"] != "assistant" or self.chat.learned[number] != is_learned:
                continue
            turn = self.marked.turn(number, self.special)
            if turn is None:
                problem = f"what the chat template makes of {label} cannot be identified"
                remedy = "give one with {% generation %} marks as dataset.chat_template, or set dataset.loss_on: all"
                raise ValueError(f"{self.place}: {problem}; {remedy}")
            inside = (offsets[:, 1] > turn.begin) & (offsets[:, 0] < turn.end) & (offsets[:, 1] > offsets[:, 0])
            yield np.flatnonzero(inside), turn.is_closed

    def _render(self, messages: Sequence[Message], is_ready: bool) -> str:
        """The rendering of messages, ready for an answer or not, with the variables of this chat."""
        return self._apply(messages, tokenize=False, add_generation_prompt=is_ready)

    def _apply(self, messages: Sequence[Message], without: str | None = None, **options: Any) -> Any:
        import jinja2

        inputs = {key: value for key, value in self.chat.inputs.items() if key != without}
        try:
            return self.encoder.tokenizer.apply_chat_template(list(messages), **inputs, **options)
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{self.place}: the chat template cannot render these messages: {reason}") from None

    # ---- what is not in the text ----

    def _require_all_rendered(self) -> None:
        """Templates leave out roles and keys that they do not know, without a word."""
        for number, (message, label) in enumerate(zip(self.chat.messages, self.chat.labels, strict=True)):
            part = self.marked.left_out(number)
            if part is None and "tool_calls" in message and self._is_unread("tool_calls", number):
                part = "tool_calls"
            if part is not None:
                left_out = f"the chat template leaves out `{part}` of {label} (role `{message['role']}`)"
                raise ValueError(f"{self.place}: {left_out}; give another as dataset.chat_template, or remove it")

    def _unread(self) -> set[str]:
        unread = {key for key in self.chat.inputs if self._is_same(self.chat.messages, without=key)}
        unread = {key if key in TEMPLATE_INPUTS else f"chat_template_kwargs.{key}" for key in unread}
        for key in {key for message in self.chat.messages for key in message} - {"role", "content", "tool_calls"}:
            if self._is_unread(key):
                unread.add(f"messages.{key}")
        return unread

    def _is_unread(self, key: str, number: int | None = None) -> bool:
        """Whether a key of one message makes no difference, or of all: a rendering for each would take very long."""
        messages = [
            {name: value for name, value in message.items() if name != key} if number in (None, place) else message
            for place, message in enumerate(self.chat.messages)
        ]
        return self._is_same(messages)

    def _is_same(self, messages: Sequence[Message], without: str | None = None) -> bool:
        """Whether other messages, or one variable less, make no difference to the chat and its generation prompt."""
        options = {"tokenize": False, "add_generation_prompt": True}
        try:
            return self._apply(messages, without, **options) == self._apply(self.chat.messages, **options)
        except ValueError:
            return False


def _encoded(ids: list[int], learned: np.ndarray, is_open: bool = False) -> Encoded:
    learned[:1] = False
    return Encoded(np.asarray(ids, np.int32), learned, is_open)
