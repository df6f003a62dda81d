"""List the files below a folder."""

from __future__ import annotations

import os
from pathlib import Path


def files_below(folder: Path) -> list[Path]:
    """Return all files below a folder, sorted by path; hidden files and folders are left out.

    Links to files and folders are followed, except back to a folder that contains this one. A file that is reached in
    several ways is listed once, by a path without a link if there is one. Links without a target are listed too.

    Raises:
        ValueError: A folder cannot be read.
    """
    files: dict[object, Path] = {}  # by device and inode number
    top = os.path.realpath(folder)
    visited, waiting = set(), [str(folder)]
    while waiting:  # folders behind links come after all others
        for directory, subfolders, names in os.walk(waiting.pop(0), onerror=_refuse):
            real = os.path.realpath(directory)
            if real in visited or top.startswith(os.path.join(real, "")):
                subfolders.clear()
                continue
            visited.add(real)
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            waiting += [path for name in subfolders if os.path.islink(path := os.path.join(directory, name))]
            for path in (Path(directory, name) for name in sorted(names) if not name.startswith(".")):
                identity = (path.stat().st_dev, path.stat().st_ino) if path.exists() else path
                if identity not in files or files[identity].is_symlink() and not path.is_symlink():
                    files[identity] = path
    return sorted(files.values())


def _refuse(error: OSError) -> None:
    """Raise ValueError for a folder that `os.walk` cannot read and would leave out."""
    raise ValueError(f"cannot read {error.filename}: {error.strerror}; correct its permissions, or move it away")
