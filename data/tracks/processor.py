"""Detections with their video in, the same detections with identities out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

from data import processor
from data.processor import Item, Source, saved_json
from data.tracks import find
from data.tracks.config import Config, PredictFlags, TrackerSettings, with_flags
from data.tracks.crops import FILE, Cutter
from data.tracks.online import OnlineTracker, encoded
from data.tracks.open_recording import open_recording
from data.tracks.read_masks import TABLES
from data.tracks.recording import Frame, Recording
from data.tracks.tracker import Assigned
from data.tracks.writers import FORMATS, writer_of


class Shown(NamedTuple):
    """One frame of a recording."""

    recording: Recording
    frame: Frame
    is_first: bool


class Tracked(NamedTuple):
    """A frame's detections with the identities that they were given."""

    recording: Recording
    frame: Frame
    assigned: Assigned


@dataclasses.dataclass(eq=False)
class Processor(processor.Processor):
    """Tracks the detections of label files, frame by frame.

    Inputs: label files in all formats that training reads, and for label images of the Cell Tracking Challenge the
    man_track.txt beside them; the video is the one of the same name. Identities in them are not read.
    """

    SUFFIXES = find.LABELS
    WHOLE_FILES = True
    OUTPUTS = tuple(FORMATS)

    cutter: Cutter
    channels: int
    images: bool
    settings: TrackerSettings
    video: str | None = None
    image_size: tuple[int, int] | None = None
    tracker: OnlineTracker | None = None
    video_of: Source | None = None  # the input whose video `--video` is

    @classmethod
    def from_pretrained(cls, folder: Path, config: Config, process: Any, flags: Any = None) -> Self:
        """See `data.processor`."""
        values = saved_json(folder, FILE)
        described = {field.name: values[field.name] for field in dataclasses.fields(Cutter)}
        if isinstance(described["anchors"], list):
            described["anchors"] = tuple(described["anchors"])
        cutter, images = Cutter(**described), values["images"]
        flags = flags or PredictFlags()
        settings = with_flags(config.tracker, flags)
        if settings.max_angle_diff is not None and cutter.count < 2:
            raise ValueError(f"--max_angle_diff {settings.max_angle_diff} needs a model of two anchors or more")
        if flags.video and not images:
            raise ValueError(f"--video {flags.video} has no effect: this model takes coordinates alone; leave it out")
        size = None if config.image_size is None else tuple(config.image_size)
        return cls(cutter, values["channels"], images, settings, flags.video, size)

    def count(self, source: Source) -> int:
        return find.read_labels(labels_of(source)).stop

    def read(self, source: Source) -> Iterator[Item]:
        """Every frame from the first to the last with labels or a label image; those without detections too."""
        labels = labels_of(source)
        if self.video and self.video_of not in (None, source):
            raise ValueError(f"--video {self.video} is that of {self.video_of}; predict each input in a run of its own")
        self.video_of = source
        video: Any = None
        if self.images:
            video = Path(self.video).expanduser() if self.video else find.pair(labels)
            if video is None:
                raise ValueError(f"{labels} has no video of its name beside it; name it with --video")
        recording = open_recording(find.Source(labels, video), self.cutter, self.channels, self.image_size)
        images = max(recording.sequence.masks, default=0) + 1
        images = images if recording.video is None else min(images, len(recording.video))
        recording = recording.part(0, max(recording.stop, images))
        for frame in recording.labelled():
            yield Item(source, f"{source}, frame {frame.index}", Shown(recording, frame, frame.index == 0))

    def encode(self, raw: Shown) -> Shown:
        return raw

    def predict(self, model: Any, inputs: list[Shown]) -> list[Tracked]:
        """The next frames of the video, or of several one after another."""
        import torch

        with torch.no_grad():
            tracked = []
            for shown, features in zip(inputs, encoded(model, [shown.frame for shown in inputs]), strict=True):
                if shown.is_first or self.tracker is None:
                    self.tracker = OnlineTracker(model, self.settings)
                tracked.append(Tracked(shown.recording, shown.frame, self.tracker.update(shown.frame, features)))
            return tracked

    def decode(self, outputs: list[Tracked]) -> list[Tracked]:
        return outputs

    def writer(self, target: Path | BinaryIO) -> processor.Writer:
        assert isinstance(target, Path)
        return writer_of(target)


def labels_of(source: Source) -> Path:
    """The label file, or for a table of the Cell Tracking Challenge the folder of its label images."""
    if source.path is None:
        raise ValueError("labels are read from files; name one with --input")
    return source.path.parent if source.path.name in TABLES else source.path
