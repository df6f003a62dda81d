"""Checkpoints whose manifest fits and whose content does not: somebody else wrote them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class UnusableCheckpoint(ValueError):
    """A checkpoint holds what no run has written; one line."""


@contextlib.contextmanager
def reading(checkpoint: str) -> Iterator[None]:
    """Whatever a checkpoint's content leads to while it is loaded, as UnusableCheckpoint."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        where = "" if checkpoint in reason else f"{checkpoint} cannot be gone on from: {type(error).__name__}: "
        raise UnusableCheckpoint(f"{where}{reason}; resume from another checkpoint") from error
