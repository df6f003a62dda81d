"""Checkpoints whose manifest fits and whose content does not: somebody else wrote them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from storage.manifest import UNREADABLE
from storage.safe_read import NoFile


class UnusableCheckpoint(ValueError):
    """A checkpoint holds what no run has written; one line."""


@contextlib.contextmanager
def reading(checkpoint: str | Path | None, says: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Whatever a checkpoint's content leads to while it is loaded, as UnusableCheckpoint.

    Args:
        checkpoint: None: there is none, and errors are what they are.
        says: Errors that say already what is wrong and what to do.
    """
    try:
        yield
    except says:
        raise
    except Exception as error:
        if checkpoint is None or is_of_the_machine(error):
            raise
        if is_unanswered(error):
            line = f"{checkpoint} {UNREADABLE} ({error}); it may be whole all the same: start again when it can be read"
            raise UnusableCheckpoint(line) from error
        reason = " ".join(str(error).split()) or type(error).__name__
        where = "" if str(checkpoint) in reason else f"{checkpoint} cannot be gone on from: {type(error).__name__}: "
        remedy = "" if "another checkpoint" in reason else "; resume from another checkpoint"
        raise UnusableCheckpoint(f"{where}{reason}{remedy}") from error


def is_of_the_machine(error: Exception) -> bool:
    """No memory left, a device or another process that is gone: torch says so by subclasses of RuntimeError."""
    of_content = (RuntimeError, RecursionError, NotImplementedError)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and type(error) not in of_content)


def is_unanswered(error: Exception) -> bool:
    """Whether a disk did not answer, which says nothing of what it holds."""
    of_content = (FileNotFoundError, NotADirectoryError, IsADirectoryError, NoFile)
    return isinstance(error, OSError) and not isinstance(error, of_content)


def check_fused_state(optimizer: Any) -> None:
    """Fused kernels trust the shapes of what they are given: another one is memory read and written beyond its end.

    Raises:
        ValueError: a tensor of a parameter's state is neither a number nor of the parameter's shape.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("fused") else ():
            for name, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor) and value.dim() and value.shape != parameter.shape:
                    shapes = f"{tuple(value.shape)}, its weight of {tuple(parameter.shape)}"
                    raise ValueError(f"`{name}` of the optimizer's state is of shape {shapes}")


def watch_first_step(optimizer: Any, checkpoint: str | Path) -> None:
    """Whether an optimizer's state can be gone on with shows in its first step: what comes of that is told as of it."""
    inner = getattr(optimizer, "optimizer", optimizer)
    own, step = vars(inner).get("step"), inner.step

    def first_step(*arguments: Any, **options: Any) -> Any:
        if own is None:
            del inner.step
        else:  # a schedule or an engine has put one there
            inner.step = own
        try:
            return step(*arguments, **options)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError):
            with reading(checkpoint):
                raise

    inner.step = first_step
