"""Find the assistant's turns in a rendered chat.

A turn is what the model has to generate: all that follows the generation prompt, up to and including the end-of-turn
token. Templates rarely say where that is, and many render a message otherwise at the end of a chat than within it, so
that no beginning of the chat is the beginning of the whole. Therefore the chat is rendered once more with marks around
what each message says (lone surrogates, which no text contains). Without its marks that rendering must be the text
itself; then the marks' positions are those of the messages. Only the short stretches between two marks are compared
with the renderings of a chat that ends there: before a turn, to find the end of the generation prompt, and after it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from os.path import commonprefix
from typing import Any, NamedTuple

Message = dict[str, Any]
Span = tuple[int, int]  # first character, end
# (messages, whether ready for an answer) -> the rendered chat. Raises ValueError where the template cannot render it.
Render = Callable[[Sequence[Message], bool], str]

BEGIN, END = "\ud800", "\ud801"
MARK = re.compile(f"([{BEGIN}{END}][0-9]+,[0-9]+\ud802)")


class Turn(NamedTuple):
    """Characters of one assistant's turn; `is_closed`: an end-of-turn token is its last."""

    begin: int
    end: int
    is_closed: bool


class MarkedChat:
    """A chat whose messages are found in its text.

    Args:
        messages: As the template takes them.
        text: Their rendering.
        render: See `Render`.

    Attributes:
        spans: Number of a message -> where its content, or else the names in its tool calls, are in the text. Messages
            that say nothing, that the template leaves out or repeats, or that cannot be marked have none.
    """

    def __init__(self, messages: Sequence[Message], text: str, render: Render):
        self.messages, self.text, self.render = messages, text, render
        self.marked = [_marked(message, number) for number, message in enumerate(messages)]
        self.found = _Marks(self._rendered(self.marked))
        if self.found.text != text:
            # A condition of the template depends on the text of some messages: those go without marks.
            for number, message in enumerate(messages):
                single = [*messages[:number], self.marked[number], *messages[number + 1 :]]
                if _Marks(self._rendered(single)).text != text:
                    self.marked[number] = message
            self.found = _Marks(self._rendered(self.marked))
        if self.found.text != text:
            self.marked, self.found = list(messages), _Marks(text)
        self.spans = self.found.spans

    def left_out(self, number: int) -> str | None:
        """What of a message is not in the text: `content` or `tool_calls`; None if all of it is."""
        message = self.messages[number]
        parts = {0: message["content"], **dict(enumerate((call_name(c) for c in message.get("tool_calls", [])), 1))}
        for part, text in parts.items():
            if self.marked[number] is message:
                is_there = text.strip() in self.text
            else:
                is_there = not text.strip() or (number, part) in self.found.parts
            if not is_there:
                return "tool_calls" if part else "content"
        return None

    def turn(self, number: int, special: Sequence[Span]) -> Turn | None:
        """Return the turn of an assistant's message, or None where it cannot be identified.

        Args:
            special: The special tokens in the text.
        """
        before = max((other for other in self.spans if other < number), default=None)
        low = 0 if before is None else self.spans[before][1]
        others = [begin for other, (begin, _) in self.spans.items() if other not in (number, before) and begin >= low]
        high = min(others, default=len(self.text))
        own = self.spans.get(number)
        begin = self._begin(number, before, low, high if own is None else own[0], own)
        if begin is None or not (low <= begin <= high) or (own and not begin <= own[0] <= own[1] <= high):
            return None
        turn = self._end(number, before if own is None else number, begin, high, special)
        content = self.messages[number]["content"].strip()
        return turn if own or content in self.text[begin : turn.end] else None

    def _begin(self, number: int, before: int | None, low: int, high: int, own: Span | None) -> int | None:
        """The end of the generation prompt, which follows the message before."""
        gap, earlier = self.text[low:high], self.marked[:number]
        ended, ready = (self._after(before, earlier, is_ready) for is_ready in (False, True))
        if ready is not None and ready != ended:
            if gap.startswith(ready):
                return low + len(ready)
            prompt = ready[len(ended or "") :] if ready.startswith(ended or "") else ""
            if prompt and prompt in gap:
                return low + gap.rindex(prompt) + len(prompt)
        # A template without a generation prompt, or with another one: what it writes before an answer's first letter.
        probe = {"role": "assistant", "content": f"{_mark(BEGIN, number)}x"}
        header = self._after(before, [*earlier, probe], False, until=number)
        if header and ended and header.rstrip() == ended.rstrip():
            header = ended  # the white space is generated
        if header:
            common = len(commonprefix([header, gap]))
            if common >= len(header.rstrip()) or (own and common == len(gap)):
                return low + common
        return own[0] if own and own[0] < own[1] and self.messages[number]["content"].strip() else None

    def _end(self, number: int, anchor: int | None, begin: int, high: int, special: Sequence[Span]) -> Turn:
        """The end-of-turn token after what was said, or where the template's next words begin."""
        low = 0 if anchor is None else self.spans[anchor][1]
        is_last = number + 1 == len(self.marked)
        after = self.text[low:] if is_last else self._after(anchor, self.marked[: number + 1], False) or ""
        stop, floor = low + len(commonprefix([after, self.text[low:high]])), max(low, begin)
        ends = [end for start, end in special if floor <= start and end <= stop]
        if ends and not self.text[ends[-1] : stop].strip():
            return Turn(begin, ends[-1], True)
        later = next(((start, end) for start, end in special if floor <= start and stop < end <= high), None)
        if later is not None and not self.text[stop : later[0]].strip():
            return Turn(begin, later[1], True)
        return Turn(begin, max(stop, floor), False)

    def _after(self, anchor: int | None, messages: Sequence[Message], is_ready: bool, until: int | None = None):
        """What a shorter chat renders to behind message `anchor`; None where it cannot be rendered or found."""
        marks = _Marks(self._rendered(messages, is_ready))
        if not marks.text or not {anchor, until} - {None} <= marks.spans.keys():
            return None
        return marks.text[
            0 if anchor is None else marks.spans[anchor][1] : None if until is None else marks.spans[until][0]
        ]

    def _rendered(self, messages: Sequence[Message], is_ready: bool = False) -> str:
        """The rendering; empty where the template refuses these messages."""
        try:
            return self.render(messages, is_ready) if messages else ""
        except ValueError:
            return ""


class _Marks:
    """The marks in a rendering.

    Attributes:
        text: The rendering without them.
        parts: (message, part) of those that are there.
        spans: Message -> its first and last mark's position in `text`, unless the template repeats the message.
    """

    def __init__(self, rendered: str):
        pieces = MARK.split(rendered)
        self.text, self.parts, self.spans = "".join(pieces[::2]), set(), {}
        position, seen, repeated = 0, set(), set()
        for text, mark in zip(pieces[::2], pieces[1::2], strict=False):
            position += len(text)
            number, part = map(int, mark[1:-1].split(","))
            (repeated if mark in seen else seen).add(number if mark in seen else mark)
            self.parts.add((number, part))
            self.spans[number] = (self.spans.get(number, (position,))[0], position)
        for number in repeated:
            del self.spans[number]


def _mark(kind: str, number: int, part: int = 0) -> str:
    return f"{kind}{number},{part}\ud802"


def _marked(message: Message, number: int) -> Message:
    """The message with marks around its content (part 0) and around the name in each tool call."""

    def around(text: str, part: int) -> str:
        core = text.strip()
        if not core:
            return text
        start = text.index(core)  # marks stay within, where a template that strips white space keeps them
        return f"{text[:start]}{_mark(BEGIN, number, part)}{core}{_mark(END, number, part)}{text[start + len(core) :]}"

    marked = {**message, "content": around(message["content"], 0)}
    if "tool_calls" in message:
        calls = enumerate(message["tool_calls"], 1)
        marked["tool_calls"] = [with_function(call, name=around(call_name(call), part)) for part, call in calls]
    return message if marked == message else marked


def call_name(call: dict) -> str:
    """Return the name of the function that a tool call calls."""
    return call.get("function", call)["name"]


def with_function(call: dict, **changes: Any) -> dict:
    """Return a tool call with other values of its function; it may be the function itself."""
    return {**call, "function": {**call["function"], **changes}} if "function" in call else {**call, **changes}
