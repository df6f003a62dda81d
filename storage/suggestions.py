"""Suggest the name that a user probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST_COMPARED = 100  # characters of a word that is compared with known ones


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the most similar known name, or None if the similarity of all is below `cutoff`.

    A name that differs in case only is the nearest.
    """
    word, known = str(word), list(known)
    if len(word) > MOST_COMPARED:
        return None
    same = [name for name in known if name.lower() == word.lower()]
    matches = same or difflib.get_close_matches(word, known, n=1, cutoff=cutoff)
    return matches[0] if matches else None


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """Return "; did you mean `…`?" with the nearest known name, or `otherwise` if none is near."""
    match = nearest(word, known)
    return f"; did you mean `{match}`?" if match else otherwise
