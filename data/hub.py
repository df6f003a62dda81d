"""Load datasets of the Hugging Face hub, or tables in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def is_hub_id(path: str) -> bool:
    """Whether a path is no file here and may be a data set of the hub: `owner/name`."""
    if Path(path).expanduser().exists():
        return False
    has_suffix = Path(path).suffix.strip(".0123456789") != ""  # the .1 of owner/cubes_v2.1 is none
    return path.count("/") == 1 and not path.startswith((".", "/", "~")) and not has_suffix


def load_dataset(description: str, *arguments: Any, **options: Any) -> Any:
    """Return what `datasets.load_dataset` returns.

    Raises:
        ValueError: The package is not installed, or there is no such dataset; one line that begins with `description`.
    """
    try:
        import datasets
    except ImportError:
        raise ValueError(f"{description} needs the package `datasets`: pip install datasets") from None
    try:
        return datasets.load_dataset(*arguments, **options)
    except Exception as error:  # no such dataset, no network, no such split: the package has an error for each
        raise ValueError(f"{description} cannot be loaded: {_first_line(error)}") from error


def downloaded(name: str, key: str, cache_dir: str | None = None) -> Path:
    """Return the folder with all files of a data set of the hub, downloaded if they are not in the hub's cache.

    Args:
        cache_dir: Where the hub's files are kept; None: where its package keeps them.

    Raises:
        ValueError: there is no such data set, or no network; one line that names the configuration key.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, repo_type="dataset", cache_dir=cache_dir))
    except Exception as error:  # the package has an error for each of: no such data set, no network, no permission
        problem = f"is no folder here and cannot be loaded from the hub: {_first_line(error)}"
        raise ValueError(f"{key}: {name} {problem}") from error


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
