"""Images with their labels: what every kind of source is read into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Table:
    """Images of one source with the labels that each has.

    Attributes:
        images: Paths, or for Parquet and hub data (file or data set, row).
        labels: Names of the labels of each image.
        names: All label names, in the order of the source's columns or sorted; in all splits those of training.
        is_multi_label: Whether an image may have any number of labels.
        splits, groups: Of each image, if there is such a column.
        notes: Lines for people.
        declared: Whether the source lists its labels (as columns of 0 and 1, as a ClassLabel); else they are those that
            its images have.
    """

    images: list[Any]
    labels: list[tuple[str, ...]]
    names: list[str]
    is_multi_label: bool
    splits: list[str] | None = None
    groups: list[str] | None = None
    notes: list[str] = field(default_factory=list)
    declared: bool = False

    def part(self, indices: Sequence[int]) -> Table:
        """The images of some rows."""
        return Table(
            [self.images[index] for index in indices],
            [self.labels[index] for index in indices],
            self.names,
            self.is_multi_label,
            None,
            None if self.groups is None else [self.groups[index] for index in indices],
            self.notes,
            self.declared,
        )
