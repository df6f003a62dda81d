"""Writers of tracks: .slp, .csv, MOTChallenge's .txt, and label images of the Cell Tracking Challenge."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from data.processor import CsvWriter, Source, Writer
from data.tracks.recording import Recording
from data.tracks.scoring import outline
from data.tracks.tracker import UNTRACKED
from data.tracks.video import read_image

FOLDER = ""  # ending of a folder's name


class RowWriter(CsvWriter):
    """A text file with a line for each detection; lines of a file that is left out are cut off again."""

    header: list[str] | None = None

    def __init__(self, target: Path):
        super().__init__(target, self.header)
        self.starts: dict[Source, int] = {}

    def lines(self, source: Source, record: Any) -> Iterable[list[Any]]:
        """The values of each line of a record of `data.tracks.processor.Tracked`."""
        raise NotImplementedError

    def write(self, source: Source, record: Any) -> None:
        if source not in self.starts:
            self.starts[source] = self.stream.tell()
        self.rows.writerows(self.lines(source, record))

    def drop(self, source: Source) -> None:
        if source in self.starts:
            self.stream.seek(self.starts.pop(source))
            self.stream.truncate()


class CsvWriter(RowWriter):
    """`track` is empty where `max_tracks` left none; x and y are the centre of the box in px."""

    header = ["file", "frame", "detection", "track", "confidence", "x", "y"]

    def lines(self, source: Source, record: Any) -> Iterable[list[Any]]:
        boxes, assigned = outline(record.frame.boxes), record.assigned
        for index, (top, left, bottom, right) in enumerate(boxes.tolist()):
            identity = int(assigned.identities[index])
            track = "" if identity == UNTRACKED else identity
            place = f"{(left + right) / 2:.3f}", f"{(top + bottom) / 2:.3f}"
            yield [source.name, record.frame.index, index, track, f"{assigned.confidences[index]:.6f}", *place]


class MotWriter(RowWriter):
    """frame, id, left, top, width, height, confidence, -1, -1, -1; frames, ids and pixels count from 1."""

    def lines(self, source: Source, record: Any) -> Iterable[list[Any]]:
        if len(self.starts) > 1:
            raise ValueError("a .txt file of MOTChallenge has one video; write several to .csv or .slp")
        boxes, assigned = outline(record.frame.boxes), record.assigned
        for index, (top, left, bottom, right) in enumerate(boxes.tolist()):
            if assigned.identities[index] != UNTRACKED:
                sides = [f"{value:.3f}" for value in (left + 1, top + 1, right - left, bottom - top)]
                start = [record.frame.index + 1, int(assigned.identities[index]) + 1]
                yield [*start, *sides, f"{assigned.confidences[index]:.6f}", -1, -1, -1]


class SlpWriter:
    """A .slp file for SLEAP: predicted instances with their tracks; unsure frames are its suggestions."""

    def __init__(self, target: Path):
        self.target = target
        self.parts: dict[Source, tuple[Any, Any, list[Any], dict[int, Any], list[int]]] = {}

    def write(self, source: Source, record: Any) -> None:
        import sleap_io

        if source not in self.parts:
            self.parts[source] = (*skeleton_and_video(record.recording), [], {}, [])
        skeleton, video, frames, tracks, unsure = self.parts[source]
        frame, assigned = record.frame, record.assigned
        if assigned.is_unsure:
            unsure.append(frame.index)
        instances = []
        for row in range(len(frame)):
            identity = int(assigned.identities[row])
            track = None
            if identity != UNTRACKED:
                track = tracks.setdefault(identity, sleap_io.Track(f"track_{identity}"))
            points = frame.points[row]
            scores = {"score": float(frame.scores[row]), "tracking_score": float(assigned.confidences[row])}
            scores["point_scores"] = np.ones(len(points))
            make = sleap_io.PredictedInstance.from_numpy
            instances.append(make(points, skeleton=skeleton, track=track, **scores))
        if instances:
            frames.append(sleap_io.LabeledFrame(video=video, frame_idx=frame.index, instances=instances))

    def drop(self, source: Source) -> None:
        self.parts.pop(source, None)

    def close(self) -> None:
        import sleap_io

        parts = list(self.parts.values())
        labels = sleap_io.Labels(
            [frame for part in parts for frame in part[2]],
            videos=[part[1] for part in parts],
            skeletons=[part[0] for part in parts],
            tracks=[track for part in parts for track in part[3].values()],
            suggestions=[sleap_io.SuggestionFrame(part[1], index) for part in parts for index in part[4]],
        )
        labels.save(str(self.target), embed=False, verbose=False)


def skeleton_and_video(recording: Recording) -> tuple[Any, Any]:
    """Of a .slp file its own; of other labels a skeleton without edges, and the video that crops come from."""
    import sleap_io

    source = recording.sequence.source
    if source.suffix == ".slp":
        labels = sleap_io.load_slp(str(source), open_videos=False)
        return labels.skeletons[0], labels.videos[0]
    path = source if recording.video is None else recording.video.path
    return sleap_io.Skeleton(list(recording.sequence.nodes)), sleap_io.Video(str(path), open_backend=False)


class CtcWriter:
    """`NAME_RES/mask000.tif …` with each detection in the number of its track, and `res_track.txt`.

    The challenge allows no gaps: a track that was lost goes on under a new number, with the old one as its parent. A
    region is that of the input's label images; of other labels the ellipse in the box.
    """

    def __init__(self, target: Path):
        self.target = target
        target.mkdir()
        self.tables: dict[Source, tuple[Path, dict[int, list[int]], dict[int, int]]] = {}

    def write(self, source: Source, record: Any) -> None:
        import tifffile

        if source not in self.tables:
            folder = self.target / f"{record.recording.name}_RES"
            if folder.exists():
                raise ValueError(f"{source}: an input before it is called {record.recording.name} too; rename one")
            folder.mkdir()
            self.tables[source] = (folder, {}, {})
        folder, table, label_of = self.tables[source]
        frame, identities = record.frame, record.assigned.identities
        labels = np.zeros(len(frame), np.uint16)
        for row, identity in enumerate(identities.tolist()):
            if identity == UNTRACKED:
                continue
            before = label_of.get(identity, 0)
            if not before or table[before][1] < frame.index - 1:
                label_of[identity] = len(table) + 1
                table[label_of[identity]] = [frame.index, frame.index, before]
            labels[row] = label_of[identity]
            table[label_of[identity]][1] = frame.index
        digits = 3 if record.recording.stop <= 1000 else 4  # the challenge's: the same for all frames
        tifffile.imwrite(folder / f"mask{frame.index:0{digits}d}.tif", regions(record.recording, frame, labels))

    def drop(self, source: Source) -> None:
        if source in self.tables:
            shutil.rmtree(self.tables.pop(source)[0])

    def close(self) -> None:
        for folder, table, _ in self.tables.values():
            lines = [" ".join(map(str, (label, *row))) for label, row in table.items()]
            (folder / "res_track.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def regions(recording: Recording, frame: Any, labels: np.ndarray) -> np.ndarray:
    """(H, W) uint16: each detection's region in its label (n,), 0 elsewhere."""
    sequence = recording.sequence
    path = sequence.masks.get(frame.index)
    if path is not None:
        before = read_image(path)
        image = np.zeros(before.shape, np.uint16)
        for value, label in zip(sequence.mask_labels[frame.rows], labels, strict=True):
            image[before == value] = label
        return image
    image = np.zeros(frame.size, np.uint16)
    limits = np.tile(frame.size, 2)
    for box, label in zip(outline(frame.boxes), labels, strict=True):
        top, left, bottom, right = np.clip(box.round(), 0, limits - 1).astype(int)
        y, x = np.ogrid[top : bottom + 1, left : right + 1]
        half_height, half_width = max(bottom - top, 1) / 2, max(right - left, 1) / 2
        inside = ((y - top) / half_height - 1) ** 2 + ((x - left) / half_width - 1) ** 2 <= 1
        region = image[top : bottom + 1, left : right + 1]
        region[inside & (region == 0)] = label
        image[(top + bottom) // 2, (left + right) // 2] = label  # also where boxes cover each other
    return image


FORMATS: dict[str, Callable[[Path], Writer]] = {
    ".slp": SlpWriter,
    ".csv": CsvWriter,
    ".txt": MotWriter,
    FOLDER: CtcWriter,
}


def writer_of(target: Path) -> Writer:
    """The writer of an output, by the ending of its name."""
    return FORMATS[target.suffix](target)
