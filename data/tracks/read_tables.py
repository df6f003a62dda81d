"""Tracks as text: tables of TrackMate and others (.csv), and files of the MOT challenge (.txt)."""

from __future__ import annotations

import configparser
import csv
from pathlib import Path

import numpy as np

from data.tracks.sequence import Sequence, sequence_of

# What a table says of a detection -> the names that its column may have, in any case.
COLUMNS = {
    "frame": ("frame", "t"),
    "track": ("track_id", "track", "identity"),
    "x": ("position_x", "x", "centroid_x"),
    "y": ("position_y", "y", "centroid_y"),
    "score": ("confidence", "score"),
}
OPTIONAL = ("track", "score")
UNITS = 3  # lines below the header in which TrackMate explains the columns, the last one with their units


def read_csv(path: Path) -> Sequence:
    """A table with a line for each detection: frame (from 0), x and y in px, perhaps a track and a score.

    A detection without x or y has no place, and is left out as all such.

    Raises:
        ValueError: a column is missing, or a value is no number.
    """
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:  # units such as µm in other encodings
        lines = csv.reader(file)
        header = [name.strip().lower() for name in next(lines, [])]
        places = {
            meaning: next((header.index(name) for name in names if name in header), None)
            for meaning, names in COLUMNS.items()
        }
        if absent := [meaning for meaning, place in places.items() if place is None and meaning not in OPTIONAL]:
            raise ValueError(f"{path}:1: there is no column {' or '.join(COLUMNS[absent[0]])}")
        rows, unit = [], ""
        try:
            for line in filter(None, lines):
                try:
                    rows.append(csv_row(line, places))
                except (ValueError, IndexError):
                    if rows or lines.line_num > 1 + UNITS or "position_x" not in header:
                        raise ValueError(f"{path}:{lines.line_num}: frame, x or y is not a number") from None
                    unit = line[places["x"]] if places["x"] < len(line) else ""
        except csv.Error as error:
            raise ValueError(f"{path}:{lines.line_num}: {error}; correct the file") from None
    frames, points, tracks, scores = zip(*rows, strict=True) if rows else [()] * 4
    return sequence_of(path, frames, points, tracks, scores, notes=in_other_units(path, unit.strip(" ()")))


def in_other_units(path: Path, unit: str) -> tuple[str, ...]:
    """A note about coordinates that are not in px: crops and boxes would be elsewhere."""
    if unit.lower() in ("", "px", "pixel", "pixels"):
        return ()
    return (f"{path}: coordinates are in {unit}, and are read as px; TrackMate's own file has the size of a pixel",)


def csv_row(line: list[str], places: dict[str, int | None]) -> tuple:
    """(frame, (x, y), track or None, score)"""
    words = {meaning: None if place is None else line[place].strip() for meaning, place in places.items()}
    track = words["track"]
    score = float(words["score"]) if words["score"] else 1.0
    is_known = track is not None and track.lower() not in ("", "none", "nan", "-1")
    place = float(words["x"] or "nan"), float(words["y"] or "nan")
    return float(words["frame"]), place, track if is_known else None, score


def read_mot(path: Path) -> Sequence:
    """A file of the MOT challenge: frame (from 1), identity, left, top, width, height, confidence, …

    Identity -1 is unknown; lines of gt.txt with confidence 0 do not count. Coordinates begin at 1 in these files.

    Raises:
        ValueError: a line has fewer than six finite numbers, a frame below 1, or a negative width or height.
    """
    rows = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            frame, identity, left, top, width, height, *rest = map(float, line.replace(",", " ").split())
            numbers = frame, identity, left, top, width, height
            if not np.isfinite(numbers).all() or frame < 1 or min(width, height) < 0:
                raise ValueError
        except ValueError:
            raise ValueError(f"{path}:{number}: `{line[:60]}` is not frame, id, left, top, width, height, …") from None
        confidence = rest[0] if rest else 1.0
        if path.name == "gt.txt" and confidence == 0:
            continue
        box = (top - 1, left - 1, top - 1 + height, left - 1 + width)
        centre = (left - 1 + width / 2, top - 1 + height / 2)
        rows.append((frame - 1, centre, int(identity) if identity >= 0 else None, confidence, box))
    frames, points, tracks, scores, boxes = zip(*rows, strict=True) if rows else [()] * 5
    return sequence_of(path, frames, points, tracks, scores, boxes=boxes, **seqinfo(path))


def seqinfo(path: Path) -> dict:
    """Size of the video from the challenge's seqinfo.ini, in the sequence's folder, if it is there."""
    file = next((folder / "seqinfo.ini" for folder in path.parents[:2] if (folder / "seqinfo.ini").is_file()), None)
    if file is None:
        return {}
    settings = configparser.ConfigParser()
    try:
        settings.read_string(file.read_text())
        return {"size": tuple(settings.getint("Sequence", key) for key in ("imHeight", "imWidth"))}
    except (configparser.Error, ValueError) as error:
        raise ValueError(f"{file}: {' '.join(str(error).split())}") from None
