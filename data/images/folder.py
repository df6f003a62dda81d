"""Folders of images, as the library `datasets` reads them under the name `imagefolder`."""

from __future__ import annotations

from pathlib import Path

from data.files import files_below
from data.images.config import Config
from data.images.table import EXTENSIONS, SPLITS, Table, read_csv

METADATA = ("metadata.csv", "metadata.jsonl")


def read_folder(folder: Path, config: Config, key: str) -> Table:
    """Images of a folder with a subfolder per class or with a table, or of one with such a subfolder for each split.

    The table is metadata.csv or metadata.jsonl, with a column `file_name` and, unless the keys of the data say
    otherwise, the column `label` (a class) or `labels` (a list of them). Links are followed, hidden files left out.

    Raises:
        ValueError: a fault of the table.
    """
    splits = split_folders(folder)
    if not splits:
        return _read_part(folder, config, key)
    parts = {part: _read_part(part, config, key) for part in splits}
    first = next(table for part, table in parts.items() if splits[part] == "train")
    for part, table in parts.items():
        if table.is_multi_label != first.is_multi_label:
            kind = "lists of labels" if table.is_multi_label else "one class each"
            raise ValueError(f"`{key}: {folder}`: the images in {part} have {kind}, the training images not")
    return Table(
        [image for table in parts.values() for image in table.images],
        [labels for table in parts.values() for labels in table.labels],
        list(dict.fromkeys(name for table in (first, *parts.values()) for name in table.names)),
        first.is_multi_label,
        splits=[splits[part] for part, table in parts.items() for _ in table.images],
        notes=[note for table in parts.values() for note in table.notes],
        declared=first.declared,
    )


def split_folders(folder: Path) -> dict[Path, str]:
    """Subfolder -> split (train, val, test), if all subfolders are called so; else nothing."""
    if metadata_of(folder) is not None:
        return {}
    splits = {child: SPLITS.get(child.name.lower(), "") for child in _subfolders(folder)}
    return splits if "train" in splits.values() and all(splits.values()) else {}


def metadata_of(folder: Path) -> Path | None:
    """The table of a folder, if it has one."""
    return next((folder / name for name in METADATA if (folder / name).is_file()), None)


def _read_part(folder: Path, config: Config, key: str) -> Table:
    metadata = metadata_of(folder)
    if metadata is None:
        return _read_classes(folder)
    return read_csv(metadata, config, key, is_metadata=True)


def _read_classes(folder: Path) -> Table:
    images, labels, empty = [], [], []
    for child in _subfolders(folder):
        files = [file for file in files_below(child) if file.suffix.lower() in EXTENSIONS]
        images += files
        labels += [(child.name,)] * len(files)
        empty += [] if files else [child.name]
    notes = [f"{folder}: no images in {', '.join(empty)}"] if empty else []
    return Table(images, labels, sorted({name for (name,) in labels}), is_multi_label=False, notes=notes)


def _subfolders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
