"""Deletes what is no longer wanted beside the training: unlinking a large checkpoint's files may take seconds."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from pathlib import Path

from tqdm import tqdm

from storage.atomic import discard, hide


class Deletions:
    """Folders on their way out: the name is gone at once, what was under it is deleted by a thread.

    The thread is there while it has something to do, and does not hold up a process that ends: what is left then bears
    a name that nobody looks for, and the next start sweeps it away, as after a kill.

    Args:
        in_background: Otherwise `delete` deletes before it returns.
    """

    def __init__(self, in_background: bool = True):
        self.in_background = in_background
        self.leaving: list[Path] = []  # the first is being deleted
        self.changed = threading.Condition()

    def delete(self, folder: Path) -> None:
        """Raises:
        OSError: the folder cannot be given another name, and stays as it is.
        """
        hidden = hide(folder)
        if hidden is None:
            return
        if not self.in_background:
            _delete(hidden)
            return
        with self.changed:
            self.leaving.append(hidden)
            if len(self.leaving) == 1:
                threading.Thread(target=self._work, name="deletions", daemon=True).start()

    def wait(self, patience: float | None = None) -> bool:
        """Waits until nothing is left to delete, at most so many seconds; whether that is so."""
        with self.changed:
            return self.changed.wait_for(lambda: not self.leaving, patience)

    def _work(self) -> None:
        while True:
            with contextlib.suppress(Exception):  # a terminal that is no longer there
                _delete(self.leaving[0])
            with self.changed:
                self.leaving.pop(0)
                self.changed.notify_all()
                if not self.leaving:
                    return


def _delete(folder: Path) -> None:
    discard(folder)
    if os.path.lexists(folder):
        tqdm.write(f"{folder} could not be deleted; the next start tries again", file=sys.stderr)
