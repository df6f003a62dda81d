"""What eval.py writes of tracks: scores beside those of baselines, a film of each video, identities over time."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from data.tracks.config import TrackerSettings
from data.tracks.scoring import ScoredFrame, TrackingMetric
from data.tracks.tracker import UNTRACKED, Assigned
from metrics.report import label_table, write_scores
from metrics.tracking import DIRECTIONS, HALF, matched

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


FILMED = 1000  # most frames of a film


class Report:
    """Called by eval.py with the metric that has scored a data set; picklable."""

    def __init__(self, settings: TrackerSettings):
        self.settings = settings

    def __call__(
        self, split: str, dataset: Any, metric: TrackingMetric | None, scores: dict[str, float], folder: Path
    ) -> list[str]:
        """Write the files of one split into `folder`; returns lines for people: a table of tracker and baselines."""
        if metric is None or scores.get("idf1") != scores.get("idf1"):  # clips without scores, or a diverged model
            return []
        folder = folder if split == "validation" else folder / split
        folder.mkdir(parents=True, exist_ok=True)
        baselines = metric.baselines()
        prefixed = {f"{kind}_{name}": value for kind, values in baselines.items() for name, value in values.items()}
        write_scores(folder, {**scores, **prefixed})
        rows = {"model": scores, **baselines}
        lines = label_table([{"": name, **{key: rows[name][key] for key in DIRECTIONS}} for name in rows])
        for number, group in groupby(metric.tracked(self.settings), key=lambda pair: pair[0].video):
            frames, recording = list(group), dataset.videos()[number]
            file = f"{number}-{recording.name}"
            draw_identities(folder / f"{file}.png", recording.name, list(given_identities(frames, metric)))
            if recording.video is not None:
                write_film(folder / f"{file}.mp4", pictures(recording, frames[:FILMED]))
        return [*lines, f"scores, films and identities over time in {folder}"]


def given_identities(
    frames: list[tuple[ScoredFrame, Assigned]], metric: TrackingMetric
) -> Iterator[tuple[int, int, int]]:
    """(frame, true identity, given identity) of each detection that is a true instance."""
    for frame, assigned in frames:
        for row, column in matched(metric.similarity(frame.truth_boxes, frame.boxes), HALF):
            yield frame.frame, int(frame.truth[row]), int(assigned.identities[column])


def pictures(recording: Any, frames: list[tuple[ScoredFrame, Assigned]]) -> Iterator[np.ndarray]:
    """The images of a film; those of turned frames are turned back, so that all have one size."""
    for (frame, assigned), image, labels in zip(frames, recording.images(), recording.frames(), strict=False):
        turned = np.ascontiguousarray(np.rot90(image, labels.quarters))
        yield np.rot90(drawn(turned, frame.boxes, assigned.identities), -labels.quarters)
