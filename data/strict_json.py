"""JSON that somebody else wrote: whatever is wrong with it is one line."""

from __future__ import annotations

import json
import sys
from typing import Any


def parsed(text: str | bytes) -> Any:
    """The value that `text` stands for.

    Raises:
        ValueError: not JSON or not UTF-8, nested deeper than Python follows, or a number longer than Python reads; the
            message is the reason alone, without the place.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(why(error)) from None


def why(error: ValueError | RecursionError) -> str:
    """What json's error means to the author of the text."""
    if isinstance(error, RecursionError):
        return "lists or objects are nested too deeply"
    if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)):
        return " ".join(str(error).split())
    # Left by json to int(), whose advice is for programmers.
    return f"a number has more than {sys.get_int_max_str_digits():,} digits"
