"""Instructions as the set of their words: what a policy without a language model reads.

Shapes: V words of the vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

WORD = re.compile(r"[^\W_]+")


def words_of(text: str) -> set[str]:
    """The words of a text in lower case, without punctuation."""
    return set(WORD.findall(text.lower()))


def vocabulary_of(texts: Iterable[str]) -> list[str]:
    """All words of some texts, sorted."""
    return sorted(set().union(*map(words_of, texts)))


def encode_words(text: str, vocabulary: list[str]) -> np.ndarray:
    """(V,) float32: 1 for each word of the vocabulary that the text has; other words are left out."""
    present = words_of(text)
    return np.array([word in present for word in vocabulary], dtype=np.float32)
