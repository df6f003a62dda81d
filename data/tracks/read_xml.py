"""Tracks as XML: TrackMate's files and exports, the ISBI 2012 challenge, ICY. No entity of a file is expanded."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET
from xml.parsers import expat

from data.tracks.read_tables import in_other_units
from data.tracks.sequence import Sequence, sequence_of

Row = tuple[float, tuple[float, float], int | None]  # frame, x and y in px, number of the track


def read_xml(path: Path) -> Sequence:
    """The detections of an XML file.

    TrackMate's own file has `Spot`s, joined by `Edge`s, with coordinates in the unit of the image's pixel size; exports
    of TrackMate and ISBI's files have a `particle` for each track, ICY's a `track`, with `detection`s in px.

    Raises:
        ValueError: it is no XML, declares entities, has none of these, or an attribute is missing or no number.
    """
    root = parse(path)
    try:
        rows, size = read_trackmate(root) if root.tag == "TrackMate" else (read_detections(root), None)
    except KeyError as error:
        raise ValueError(f"{path}: a detection has no attribute {error}") from None
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{path}: an attribute is not a number, or 0 ({error})") from None
    if not rows:
        raise ValueError(f"{path}: there are no tracks with detections (TrackMate, ISBI or ICY)")
    frames, points, numbers = zip(*rows, strict=True)
    notes = in_other_units(path, root.get("spaceUnits", ""))  # of TrackMate's export
    return sequence_of(path, frames, points, numbers, size=size, notes=notes)


def read_detections(root: ET.Element) -> list[Row]:
    """The detections of ISBI's and ICY's files."""
    tracks = [element for element in root.iter() if element.tag in ("particle", "track")]
    return [
        (float(spot.attrib["t"]), (float(spot.attrib["x"]), float(spot.attrib["y"])), number)
        for number, track in enumerate(tracks)
        for spot in track.iter("detection")
    ]


def parse(path: Path) -> ET.Element:
    """The root element of a file without entities, which could name other files or grow without bound."""

    def refuse(name: str, *_: object) -> None:
        raise ValueError(f"{path}: the file declares the entity {name}, which is not allowed; remove its DOCTYPE")

    declarations = expat.ParserCreate()
    declarations.EntityDeclHandler = refuse
    try:
        with path.open("rb") as file:
            declarations.ParseFile(file)
        return ET.parse(path).getroot()
    except (ET.ParseError, expat.ExpatError, OSError) as error:
        raise ValueError(f"{path}: the file is not XML ({error})") from None


def read_trackmate(root: ET.Element) -> tuple[list[Row], tuple[int, int] | None]:
    """(spots, height and width of the images where the file says them)"""
    image = root.find("Settings/ImageData")
    settings = {} if image is None else image.attrib
    pixel = float(settings.get("pixelwidth", 1)), float(settings.get("pixelheight", 1))
    spots = {spot.attrib["ID"]: spot.attrib for spot in root.iter("Spot")}
    tracks = numbered(list(edges_of(root)), {name: float(spot["FRAME"]) for name, spot in spots.items()})
    width, height = int(settings.get("width", 0)), int(settings.get("height", 0))
    rows = [
        (
            float(spot["FRAME"]),
            (float(spot["POSITION_X"]) / pixel[0], float(spot["POSITION_Y"]) / pixel[1]),
            tracks.get(name),
        )
        for name, spot in spots.items()
        if spot.get("VISIBILITY") != "0" or name in tracks  # what the filter of spots leaves
    ]
    return rows, (height, width) if width and height else None


def edges_of(root: ET.Element) -> Iterator[tuple[str, str]]:
    """(spot, spot) of the tracks that TrackMate's filters leave."""
    kept = {track.attrib["TRACK_ID"] for track in root.iter("TrackID")}
    for track in root.iter("Track"):
        if not kept or track.attrib["TRACK_ID"] in kept:
            for edge in track.iter("Edge"):
                yield edge.attrib["SPOT_SOURCE_ID"], edge.attrib["SPOT_TARGET_ID"]


def numbered(edges: list[tuple[str, str]], frame_of: dict[str, float]) -> dict[str, int]:
    """Spot -> number of its track; where a track divides or several join, new ones begin."""
    after, before = defaultdict(list), defaultdict(list)
    for edge in edges:
        source, target = sorted(edge, key=lambda name: frame_of[name])
        after[source].append(target)
        before[target].append(source)
    numbers: dict[str, int] = {}
    following = itertools.count()
    for spot in sorted({*after, *before}, key=lambda name: frame_of[name]):
        earlier = before[spot]
        continues = len(earlier) == 1 and len(after[earlier[0]]) == 1
        numbers[spot] = numbers[earlier[0]] if continues else next(following)
    return numbers
