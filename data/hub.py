"""Load datasets of the Hugging Face hub, or tables in files, with the package `datasets`."""

from __future__ import annotations

from typing import Any


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
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(f"{description} cannot be loaded: {reason}") from error
