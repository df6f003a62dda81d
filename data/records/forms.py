"""Read the form of a record: a chat, a prompt with its completion, or plain text.

    {"messages": [{"role": …, "content": …}], "tools": […], "chat_template_kwargs": {…}}     OpenAI, TRL
    {"conversations": [{"from": …, "value": …}], "system": …}                                ShareGPT
    {"instruction": …, "input": …, "output": …, "history": [[…, …]]}                         Alpaca
    {"prompt": …, "completion": …}                                                           text, or lists of messages
    {"text": …}

All chats become one form. Keys whose value is null count as absent, since tables fill them in.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from data.strict_json import parsed

# ShareGPT's names of roles; other names are roles themselves.
SHAREGPT_ROLES = {
    "human": "user",
    **dict.fromkeys(("gpt", "chatgpt", "model", "bot", "function_call"), "assistant"),
    **dict.fromkeys(("observation", "function_response"), "tool"),
}
# What a template gets besides the messages, by the record's key.
TEMPLATE_INPUTS = ("tools", "documents")
CHAT, ALPACA = ("messages", "conversations"), ("instruction", "output")


@dataclass(frozen=True)
class Text:
    """Plain text; where it continues a prompt, the prompt is no text to learn."""

    text: str
    prompt: str | None = None


@dataclass(frozen=True)
class Chat:
    """Messages as chat templates take them.

    Attributes:
        messages: Objects with `role`, `content` (text) and whatever else the record has.
        labels: What each message is called in errors: `message 2`.
        learned: Whether each message is an assistant's that carries loss.
        inputs: Variables of the template: `tools`, `documents` and those of `chat_template_kwargs`.
    """

    messages: list[dict[str, Any]]
    labels: list[str]
    learned: list[bool]
    inputs: dict[str, Any] = field(default_factory=dict)


def read_form(record: object, place: str, text_column: str | None) -> tuple[Text | Chat, set[str]]:
    """Return what a record says, and those of its keys that say nothing.

    Raises:
        ValueError: The record has none of the forms, or something in it is missing or of the wrong type.
    """
    if not isinstance(record, dict):
        raise ValueError(f"{place}: a record is a JSON object, this is {_a(record)}")
    record = {key: value for key, value in record.items() if value is not None}
    if text_column is not None:
        return Text(_text(record, text_column, place, "dataset.text_column names it")), record.keys() - {text_column}
    chat_key = next((key for key in CHAT if key in record), None)
    if chat_key is None and "prompt" not in record and "completion" not in record:
        if any(key in record for key in ALPACA):
            return _alpaca(record, place)
        if "text" in record:
            return Text(_text(record, "text", place, "plain text")), record.keys() - {"text"}
        keys = ", ".join(f"`{key}`" for key in list(record)[:5]) or "none"
        forms = "`messages` nor `conversations`, `prompt` and `completion`, `instruction` and `output`, or `text`"
        raise ValueError(f"{place}: has neither {forms} (its keys: {keys}); name its text with dataset.text_column")
    if chat_key is not None:
        return _chat(record, [(chat_key, record[chat_key], True)], place)
    if isinstance(record.get("prompt"), list):
        parts = [(key, record.get(key), key == "completion") for key in ("prompt", "completion")]
        return _chat(record, parts, place)
    prompt, completion = (
        _text(record, key, place, "a prompt goes with a completion") for key in ("prompt", "completion")
    )
    return Text(completion, prompt), record.keys() - {"prompt", "completion"}


def as_chat(text: Text) -> Chat:
    """Return a prompt and its completion as a chat of two messages."""
    messages = [{"role": "user", "content": text.prompt}, {"role": "assistant", "content": text.text}]
    return Chat(messages, ["`prompt`", "`completion`"], [False, True])


def _alpaca(record: dict, place: str) -> tuple[Chat, set[str]]:
    instruction, output = (_text(record, key, place, "an instruction goes with an output") for key in ALPACA)
    details = _text(record, "input", place) if "input" in record else ""
    question = f"{instruction}\n\n{details}" if details.strip() else instruction
    chat = Chat([], [], [])
    for number, pair in enumerate([*record.get("history", []), [question, output]], 1):
        if not isinstance(pair, list) or [type(text) for text in pair] != [str, str]:
            raise ValueError(f"{place}: entry {number} of `history` is not a pair of texts")
        chat.messages.extend(
            {"role": role, "content": text} for role, text in zip(("user", "assistant"), pair, strict=True)
        )
        chat.labels.extend((f"question {number}", f"answer {number}"))
        chat.learned.extend((False, True))
    return _with_inputs(record, chat, {*ALPACA, "input", "history"}, place)


def _chat(record: dict, parts: list[tuple[str, object, bool]], place: str) -> tuple[Chat, set[str]]:
    """A chat from lists of messages: (key, value, whether its assistants' messages carry loss)."""
    chat, unread = Chat([], [], []), set()
    for key, values, carries_loss in parts:
        if not isinstance(values, list) or not values:
            raise ValueError(f"{place}: `{key}` must be a list of at least one message")
        for value in values:
            label = f"message {len(chat.messages) + 1}"
            message = _message(value, label, place)
            weight = message.pop("weight", 1)
            if weight not in (0, 1):
                raise ValueError(f"{place}: `weight` of {label} is {json.dumps(weight)}; it is 0 (no loss) or 1")
            if weight and "weight" in value and message["role"] != "assistant":
                unread.add(f"{key}.weight")  # only what the assistant says can carry loss
            chat.messages.append(message)
            chat.labels.append(label)
            chat.learned.append(message["role"] == "assistant" and carries_loss and bool(weight))
    chat, others = _with_inputs(record, chat, {key for key, _, _ in parts}, place)
    return chat, unread | others


def _with_inputs(record: dict, chat: Chat, read: set[str], place: str) -> tuple[Chat, set[str]]:
    """The chat with the record's system message and variables of the template, and the keys that are left."""
    read = {*read, *TEMPLATE_INPUTS, "chat_template_kwargs"}
    system = record.get("system")
    if isinstance(system, str) and system.strip() and chat.messages[0]["role"] != "system":
        message = {"role": "system", "content": system}
        chat = Chat([message, *chat.messages], ["`system`", *chat.labels], [False, *chat.learned])
        read.add("system")
    inputs = record.get("chat_template_kwargs")
    if not isinstance(inputs, dict | None):
        raise ValueError(f"{place}: `chat_template_kwargs` is {_a(inputs)}, not an object")
    inputs = dict(inputs or {})
    for key in TEMPLATE_INPUTS:
        value = record.get(key)
        if isinstance(value, str) and value.strip():
            value = _json(value, f"{place}: `{key}`")
        if value and not (isinstance(value, list) and all(isinstance(entry, dict) for entry in value)):
            raise ValueError(f"{place}: `{key}` is {_a(value)}, not a list of objects")
        if value:
            inputs[key] = value
    return Chat(chat.messages, chat.labels, chat.learned, inputs), record.keys() - read


def _message(value: object, label: str, place: str) -> dict[str, Any]:
    """A message with text as `role` and `content`."""
    if not isinstance(value, dict):
        raise ValueError(f"{place}: {label} is {_a(value)}, not an object with `role` and `content`")
    message = {key: part for key, part in value.items() if part is not None}
    if "role" not in message and isinstance(message.get("from"), str):
        message |= _from_sharegpt(message.pop("from"), message.pop("value", None))
    if not isinstance(message.get("role"), str):
        raise ValueError(f"{place}: {_wrong('role', label, value)}")
    if not message.get("tool_calls"):
        message.pop("tool_calls", None)
    else:
        message["tool_calls"] = list(_tool_calls(message["tool_calls"], label, place))
    content = message.get("content")
    if content is None and any(message.get(key) for key in ("tool_calls", "reasoning_content")):
        content = ""
    if isinstance(content, list):
        content = "".join(_parts(content, label, place))
    if not isinstance(content, str):
        raise ValueError(f"{place}: {_wrong('content', label, value)}")
    return {**message, "content": content}


def _wrong(key: str, label: str, message: dict) -> str:
    names = [name for name in ((key, {"role": "from", "content": "value"}[key])) if name in message]
    state = f"is {_a(message[names[0]])}, not text" if names else "is missing"
    return f"`{names[0] if names else key}` of {label} {state}; a message has `role` and `content`"


def _from_sharegpt(role: str, value: object) -> dict[str, Any]:
    if role == "function_call" and isinstance(value, str):
        try:
            calls = parsed(value)
        except ValueError:
            calls = None  # not a call in JSON: the text is what the assistant said
        calls = calls if isinstance(calls, list) else [calls]
        if calls and all(isinstance(call, dict) and "name" in call for call in calls):
            return {"role": "assistant", "tool_calls": [{"type": "function", "function": call} for call in calls]}
    content = {} if value is None else {"content": value}
    return {"role": SHAREGPT_ROLES.get(role, role), **content}


def _tool_calls(calls: object, label: str, place: str) -> Iterator[dict]:
    """Tool calls whose arguments are objects: as JSON in a text, most templates would quote them once more."""
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise ValueError(f"{place}: `tool_calls` of {label} must be a list of functions with a `name`")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            try:
                arguments = parsed(arguments)
            except ValueError:
                arguments = None  # the function takes one text
        if isinstance(arguments, dict):
            function = {**function, "arguments": arguments}
        yield {**call, "function": function} if "function" in call else function


def _parts(parts: list, label: str, place: str) -> Iterator[str]:
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else _a(part)
            raise ValueError(f"{place}: `content` of {label} has a part of type {kind}; only type text is read")
        yield part["text"]


def _text(record: dict, key: str, place: str, reason: str = "") -> str:
    if key not in record:
        raise ValueError(f"{place}: has no `{key}` ({reason})")
    if not isinstance(record[key], str):
        raise ValueError(f"{place}: `{key}` is {_a(record[key])}, not text")
    return record[key]


def _json(text: str, what: str) -> Any:
    try:
        return parsed(text)
    except ValueError as error:
        raise ValueError(f"{what} is text, but not JSON ({error})") from None


def _a(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
