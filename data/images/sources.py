"""Read whatever `dataset.path` names: a folder, a table, a Parquet file."""

from __future__ import annotations

from pathlib import Path

from data.images.config import Config
from data.images.folder import read_folder
from data.images.labelled import Table
from data.images.table import read_csv


def read_table(path: Path, config: Config, key: str = "dataset.path") -> Table:
    """Read one source.

    Args:
        key: The key that names it, for messages.

    Raises:
        ValueError: the source is missing, or a column or a value is not what it must be; names file and line.
    """
    if path.is_dir():
        return read_folder(path, config, key)
    if not path.is_file():
        raise ValueError(
            f"`{key}: {path}` does not exist; name a table of images, or a folder with a subfolder per class"
        )
    if path.suffix == ".parquet":
        from data.images.parquet import read_parquet

        return read_parquet(path, config)
    return read_csv(path, config, key)
