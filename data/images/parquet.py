"""Images inside Parquet files and data sets of the hub, as the library `datasets` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data.hub import load_dataset
from data.images.config import Config
from data.images.table import Table, column_of

IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img", "picture", "pixel_values"), ("label", "labels", "fine_label", "class")


class Cell:
    """One image: the bytes in a row of a table, or of the file that it names; read when asked for.

    Args:
        version: What changes when the table is written again.
    """

    def __init__(self, source: Any, column: str, row: int, name: str, version: list[Any]):
        self.source, self.column, self.row, self.name, self.version = source, column, row, name, version

    def read(self) -> bytes:
        value = self.source[self.column][self.row].as_py()
        if not isinstance(value, dict):
            return value
        return value["bytes"] or Path(value["path"] or "").read_bytes()

    def __str__(self) -> str:
        return f"{self.name}, row {self.row}"


def read_parquet(path: Path, config: Config) -> Table:
    """One Parquet file with a column of encoded images.

    Raises:
        ValueError: pyarrow is missing, or a column is.
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f"{path}: reading Parquet needs pyarrow; pip install 'keel[images]'") from None
    status = path.stat()
    version = [status.st_size, status.st_mtime_ns]
    return from_arrow(pyarrow.parquet.read_table(path, memory_map=True), config, str(path), version)


def read_hub(name: str, split: str, config: Config, cache_dir: str | None) -> Table:
    """A split of a data set of the hub.

    Raises:
        ValueError: the library `datasets` is missing, or it does not find the data set.
    """
    dataset = load_dataset(f"`dataset.path: {name}` is no file here, and", name, split=split, cache_dir=cache_dir)
    version = [getattr(dataset, "_fingerprint", None)]
    return from_arrow(dataset.data.table, config, f"{name} ({split})", version, dataset.features)


def from_arrow(table: Any, config: Config, name: str, version: list[Any], features: Any = None) -> Table:
    """A table of Arrow with encoded images and one column of labels: a class, or a list of them.

    Images without a label (null, or -1 of a `ClassLabel`) are left out, which a note reports.

    Args:
        version: See `Cell`.

    Raises:
        ValueError: a column is missing, or a label has no name.
    """
    images = column_of(table.column_names, config.path_column, IMAGE_COLUMNS, name, "path_column")
    labels = column_of(table.column_names, config.label_column, LABEL_COLUMNS, name, "label_column")
    class_names = _class_names(table, features, labels)
    values = table[labels].to_pylist()
    known = [row for row, value in enumerate(values) if value is not None and not (class_names and value == -1)]
    rows = [_named(values[row], class_names, f"{name}, row {row}: column {labels!r}") for row in known]
    notes = [f"{name}: {len(values) - len(known)} images without a label are left out"] * (len(known) < len(values))
    is_multi_label = any(isinstance(values[row], list) for row in known[:1])
    used = class_names or sorted({label for row in rows for label in row})
    cells = [Cell(table, images, row, name, version) for row in known]
    return Table(cells, rows, used, is_multi_label, notes=notes, declared=class_names is not None)


def _named(value: Any, class_names: list[str] | None, place: str) -> tuple[str, ...]:
    """The names of the labels of one image."""
    items = value if isinstance(value, list) else [value]
    for item in items:
        if item is None or (class_names and item not in range(len(class_names))):
            known = f" of 0 to {len(class_names) - 1}" if class_names else ""
            raise ValueError(f"{place} has the label {item}, which is none{known}; correct it")
    return tuple(class_names[item] if class_names else str(item) for item in items)


def _class_names(table: Any, features: Any, column: str) -> list[str] | None:
    """Names of a `ClassLabel`, which `datasets` also writes into the file's metadata."""
    import json

    if features is not None:
        feature = features[column]
        return getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)
    metadata = (table.schema.metadata or {}).get(b"huggingface")
    if metadata is None:
        return None
    described = json.loads(metadata)["info"]["features"].get(column, {})
    return described.get("names") or (described.get("feature") or {}).get("names")
