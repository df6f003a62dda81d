"""Errors for checkpoints that pass manifest verification but cannot be loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from storage.manifest import UNREADABLE
from storage.safe_read import FileTooLarge


class CheckpointLoadError(ValueError):
    """A checkpoint cannot be loaded; the text is one line with the folder, the reason and the remedy."""


@contextlib.contextmanager
def checkpoint_load_errors(checkpoint: str | Path | None, reraise: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn errors that a checkpoint's content causes while it is loaded into a CheckpointLoadError.

    Args:
        checkpoint: The folder that is read; None: nothing is loaded, errors pass unchanged.
        reraise: Errors that already name the value and the remedy and pass unchanged.
    """
    try:
        yield
    except reraise:
        raise
    except Exception as error:
        if checkpoint is None or _is_of_the_machine(error):
            raise
        if _is_of_the_disk(error):
            line = f"{checkpoint} {UNREADABLE} ({error}); it may be intact: start again when the disk can be read"
            raise CheckpointLoadError(line) from error
        reason = " ".join(str(error).split()) or type(error).__name__
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        folder = "" if str(checkpoint) in reason else f"{checkpoint} cannot be loaded: {kind}"
        remedy = "" if "another checkpoint" in reason else "; resume from another checkpoint"
        raise CheckpointLoadError(f"{folder}{reason}{remedy}") from error


def _is_of_the_machine(error: Exception) -> bool:
    """Out of memory, a lost device or a lost process: torch raises subclasses of RuntimeError for these."""
    of_content = (RuntimeError, RecursionError, NotImplementedError)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and type(error) not in of_content)


def _is_of_the_disk(error: Exception) -> bool:
    """Whether the disk failed to answer, which says nothing about the checkpoint's content."""
    of_content = (FileNotFoundError, NotADirectoryError, IsADirectoryError, FileTooLarge)
    return isinstance(error, OSError) and not isinstance(error, of_content)
