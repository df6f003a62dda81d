"""Label images of the Cell Tracking Challenge: a TRA folder with one image a frame and man_track.txt.

Format: https://celltrackingchallenge.net, «Naming and file content conventions».
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data.tracks.sequence import Sequence, sequence_of
from data.tracks.video import STACKS, frame_number, read_image, visible

TABLES = ("man_track.txt", "res_track.txt")  # beside the label images, and their name for predict.py


def read_masks(folder: Path) -> Sequence:
    """The cells of a TRA or RES folder: centroid and extent of each label's pixels; the label is the identity.

    Raises:
        ValueError: an image cannot be read, or the table contradicts the images.
    """
    files = [path for path in visible(folder) if path.suffix.lower() in STACKS]
    if not files:
        raise ValueError(f"{folder}: there are no label images ({', '.join(STACKS)})")
    first = min(map(frame_number, files))
    masks = {frame_number(path) - first: path for path in files}
    frames, labels, points, boxes = [], [], [], []
    for index, path in sorted(masks.items()):
        image = read_image(path)
        if image.ndim != 2 or image.dtype.kind not in "ui":
            found = f"this one is {image.dtype} {image.shape}"
            raise ValueError(f"{path}: label images have one channel of whole numbers; {found}")
        values, centres, extents = regions(image)
        frames += [index] * len(values)
        labels += values.tolist()
        points.append(centres)
        boxes.append(extents)
    notes = check_table(folder, np.array(frames) + first, np.array(labels))
    return sequence_of(
        folder,
        frames,
        np.concatenate(points),
        labels,
        boxes=np.concatenate(boxes),
        size=image.shape,
        masks=masks,
        mask_labels=labels,
        notes=notes,
    )


def regions(image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(H, W) -> (labels (n,), centroids (n, 2) x y, extents (n, 4) y1 x1 y2 x2); 0 is background."""
    rows, columns = np.nonzero(image)
    labels, inverse = np.unique(image[rows, columns], return_inverse=True)
    area = np.bincount(inverse, minlength=len(labels))
    centres = [np.bincount(inverse, weights=place, minlength=len(labels)) / area for place in (columns, rows)]
    extents = np.zeros((len(labels), 4), np.float32)
    for place, side in ((0, rows), (1, columns)):
        low, high = np.full(len(labels), np.iinfo(int).max), np.zeros(len(labels), int)
        np.minimum.at(low, inverse, side)
        np.maximum.at(high, inverse, side)
        extents[:, place], extents[:, place + 2] = low, high + 1
    return labels, np.stack(centres, -1) if len(labels) else np.zeros((0, 2)), extents


def check_table(folder: Path, frames: np.ndarray, labels: np.ndarray) -> tuple[str, ...]:
    """Compare man_track.txt (label, first frame, last frame, parent) with the images.

    A table that repeats a label is not valid. If each of its lines describes another stretch of that label in the
    images, the tracks are read from the images, with a note that the table is not valid.

    Raises:
        ValueError: a line is malformed, or the lines of a label are not where its pixels are.
    """
    table = next((folder / name for name in TABLES if (folder / name).is_file()), None)
    if table is None:
        return ()
    stretches: dict[int, list[tuple[int, int, int]]] = {}
    for number, line in enumerate(table.read_text().splitlines(), start=1):
        if line.strip():
            try:
                label, begin, end, _ = map(int, line.split())
            except ValueError:
                raise ValueError(f"{table}:{number}: `{line}` is not `label begin end parent`") from None
            stretches.setdefault(label, []).append((begin, end, number))
    for label, parts in stretches.items():
        listed = [index for begin, end, _ in parts for index in range(begin, end + 1)]
        if len(listed) != len(set(listed)):
            raise ValueError(f"{table}:{parts[-1][2]}: label {label} is repeated, with frames in common; keep one line")
        if set(listed) != set(frames[labels == label].tolist()):
            raise ValueError(f"{table}:{parts[0][2]}: label {label} has pixels in other frames than the table says")
    if missing := sorted(set(labels.tolist()) - set(stretches)):
        raise ValueError(f"{table}: label {missing[0]} is in the images, but not in the table")
    repeated = [label for label, parts in stretches.items() if len(parts) > 1]
    if not repeated:
        return ()
    problem = f"{table} repeats {len(repeated)} labels, such as {repeated[0]}, which is not valid"
    return (f"{problem}; the label images decide: equal labels are one track, with gaps",)
