"""What eval.py writes of tracks: scores beside those of baselines, a film of each video, identities over time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from data.tracks import film
from data.tracks.scoring import ScoredFrame, TrackingMetric
from data.tracks.tracker import Assigned
from data.tracks.tracker_settings import TrackerSettings
from metrics.report import label_table, write_scores
from metrics.tracking import DIRECTIONS, HALF, matched

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
            film.draw_identities(folder / f"{file}.png", recording.name, list(given_identities(frames, metric)))
            if recording.video is not None:
                film.write_film(folder / f"{file}.mp4", pictures(recording, frames[:FILMED]))
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
        yield np.rot90(film.drawn(turned, frame.boxes, assigned.identities), -labels.quarters)
