"""Find .gguf files, by their names and folders."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path


def find_gguf(place: str | Path, unless: tuple[str, ...]) -> Path | None:
    """Return `place` if it is a .gguf file, or the only one of a folder without any of the files `unless`; else None.

    Raises:
        ValueError: There are several, or the package that reads them is missing.
    """
    path = Path(os.path.expanduser(place))
    files = [path] if path.suffix == ".gguf" and os.path.isfile(path) else []
    if os.path.isdir(path) and not any((path / name).is_file() for name in unless):
        files = sorted(path.glob("*.gguf"))
    if len(files) > 1:
        raise ValueError(f"{place} has {len(files)} .gguf files ({files[0].name} …); name one of them")
    if files and importlib.util.find_spec("gguf") is None:
        raise ValueError(f"{place}: reading a .gguf file needs the package gguf: pip install gguf")
    return files[0] if files else None
