"""Suggest the name that a user probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """Return "; did you mean `…`?" with the known name nearest to `name`, or `otherwise` if none is near."""
    nearest = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean `{nearest[0]}`?" if nearest else otherwise
