"""Pictures of tracks: a film with every detection in the colour of its identity, and identities over time.

Shapes: H × W pixels, n detections of a frame.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from data.tracks.tracker import UNTRACKED

LONGEST_SIDE = 640  # px of a film
FRAMES_PER_SECOND = 10
GOLDEN = 0.618034  # share of the colour circle between two identities
SHOWN = 60  # most true identities in a picture
NO_TRACK = (160, 160, 160)


def colour(identity: int) -> tuple[int, int, int]:
    """Red, green and blue of an identity; neighbouring numbers differ most."""
    if identity == UNTRACKED:
        return NO_TRACK
    red, green, blue = colorsys.hsv_to_rgb(identity * GOLDEN % 1, 0.85, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def drawn(image: np.ndarray, boxes: np.ndarray, identities: np.ndarray) -> np.ndarray:
    """The image with boxes and numbers, at most `LONGEST_SIDE` px long: (H, W, C) uint8 -> (h, w, 3) uint8, even sides.

    Args:
        boxes: (n, 4) y1 x1 y2 x2 in px.
        identities: (n,)
    """
    from PIL import Image, ImageDraw

    picture = Image.fromarray(image if image.shape[2] == 3 else image[..., 0]).convert("RGB")
    scale = min(1.0, LONGEST_SIDE / max(picture.size))
    picture = picture.resize([max(2, round(side * scale) // 2 * 2) for side in picture.size])
    canvas = ImageDraw.Draw(picture)
    for (top, left, bottom, right), identity in zip(boxes * scale, identities.tolist(), strict=True):
        canvas.rectangle((left, top, right, bottom), outline=colour(identity), width=2)
        canvas.text((left + 3, top + 1), "?" if identity == UNTRACKED else str(identity), fill=colour(identity))
    return np.asarray(picture)


def write_film(path: Path, images: Iterable[np.ndarray]) -> None:
    """Write images (h, w, 3) uint8, all of one size, as an MP4 film; one is in memory at a time."""
    import av

    with av.open(str(path), "w") as container:
        stream = None
        for image in images:
            if stream is None:
                stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND)
                stream.height, stream.width, stream.pix_fmt = *image.shape[:2], "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        if stream is not None:
            container.mux(stream.encode())


def draw_identities(path: Path, title: str, rows: Sequence[tuple[int, int, int]]) -> None:
    """A picture with a line for each true identity, in each frame in the colour of the identity that it was given.

    Args:
        rows: (frame, true identity, given identity) of each detection that matched.
    """
    from matplotlib.figure import Figure

    names = sorted({truth for _, truth, _ in rows})[:SHOWN]
    place = {name: index for index, name in enumerate(names)}
    kept = [(frame, place[truth], given) for frame, truth, given in rows if truth in place]
    figure = Figure(figsize=(9, 1.5 + 0.2 * max(4, len(names))), layout="constrained")
    axes = figure.subplots()
    if kept:
        frames, lines, given = zip(*kept, strict=True)
        shades = [np.array(colour(identity)) / 255 for identity in given]
        axes.scatter(frames, lines, c=shades, marker="s", s=16)
    axes.set_title(title, parse_math=False)  # a name with dollar signs is no formula
    axes.set(xlabel="frame", ylabel="true identity", yticks=range(len(names)), yticklabels=names)
    axes.invert_yaxis()
    figure.savefig(path, dpi=100)
