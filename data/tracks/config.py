"""Configuration keys of tracks; importing this needs only the standard library."""

from __future__ import annotations

import dataclasses
import functools
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from storage.config_keys import EVALUATION, HARMLESS, IMPOSSIBLE, TRAJECTORY, key


@dataclass
class TrackerSettings:
    """`dataset.tracker`: how detections become tracks, for evaluation and prediction."""

    window_size: int = key(8, "newest detections of a track that a new one is compared with", ge=1)
    max_gap: int | None = key(
        None, "frames after which a track that was not seen ends, at least window_size; null: window_size", ge=1
    )
    overlap_thresh: float = key(0.01, "a detection continues a track if its score is above this", ge=0)
    mult_thresh: bool = key(True, "this threshold counts for each detection of the track in the window")
    iou: Literal["mult", "max"] | None = key(
        None, "combine scores with the overlap with the track's last box: s + |iou - s| iou, or the larger"
    )
    max_center_dist: float | None = key(
        None, "distance to the track's last place, in px, beyond which the score falls", gt=0
    )
    max_angle_diff: float | None = key(
        None, "change of direction, in degrees, beyond which the score falls (two anchors at least)", gt=0
    )
    max_tracks: int | None = key(None, "most identities in a video; once they exist, tracks do not end", ge=1)
    confidence_threshold: float = key(
        0.0, "flag a frame whose assignment is less certain (1 - normalized entropy)", ge=0, le=1
    )
    motion: bool = key(False, "compare places with where constant velocity takes the track, not with its last place")
    match_distance: float | None = key(
        None,
        "scores: a detection is a true instance up to this distance of their centres, in px; null: from an overlap of "
        "their boxes of .5 (intersection over union)",
        gt=0,
    )

    def __post_init__(self) -> None:
        if self.max_gap is not None and self.max_gap < self.window_size:
            raise ValueError(f"max_gap: {self.max_gap} must be at least window_size: {self.window_size}; change one")
        if self.motion and (self.window_size < 2 or (self.iou is None and self.max_center_dist is None)):
            raise ValueError("motion: true has an effect only with window_size: 2 or more and iou or max_center_dist")

    @property
    def context(self) -> int:
        """Frames before the current one whose detections are compared with."""
        return self.max_gap or self.window_size


course = functools.partial(key, on_resume=TRAJECTORY)  # another value trains on other clips
CLIP_LENGTH, CROP_SIZE = 32, 128


@dataclass
class Directory:
    """`dir`: folders with labels and videos, paired by their names."""

    path: str | list[str] | None = key(None, "Folder with labels and videos, or several.", is_path=True)
    labels_suffix: str | None = key(None, "Ending of the label files; null: the kind that is there.", needs="path")
    vid_suffix: str | None = key(None, "Ending of the videos; null: any, of the name of the labels.", needs="path")


@dataclass
class Split:
    """`train_dataset`, `val_dataset` or `test_dataset`; the last two take what they leave out from the first.

    Held-out videos are scored as a whole unless `chunk: true` is given for them: each clip then is a video of its own.
    """

    dir: Directory | None = key(None, "Folders with labels and videos, paired by their names.")
    slp_files: list[str] | None = key(None, "Label files, in place of dir; any format that is read.", is_path=True)
    video_files: list[str] | None = key(None, "Their videos, in the same order.", is_path=True, needs="slp_files")
    crop_size: int | list[int] | None = key(
        None, f"Side of the square around each instance, in px; a list: one for each folder or file [{CROP_SIZE}]."
    )
    padding: int | None = key(None, "Added to each side of that square, in px [0].", ge=0)
    clip_length: int | None = key(None, f"Frames of a clip [{CLIP_LENGTH}].", ge=2)
    chunk: bool | None = key(None, "Cut videos into clips; false: a whole video is one clip [true].")
    n_chunks: int | float | None = key(
        None, "Clips drawn once from all: a number, or a share up to 1.0; null: all.", gt=0
    )
    anchors: str | list[str] | int | None = key(
        None, "Where crops are centred: a node or centroid, several, or a number of random ones [centroid]."
    )
    handle_missing: Literal["drop", "ignore", "centroid"] | None = key(
        None, "Without its anchor an instance is left out, has a black crop, or is cut at its centroid [centroid]."
    )
    dilation_radius_px: int | None = key(None, "Black out crops farther from all nodes; 0: nothing [0].", ge=0)
    mode: Literal["train", "val"] | None = key(
        None,
        "train: clips for the loss, with new random numbers in each epoch; val: random numbers are drawn once, and "
        "held-out frames tracked and scored. null: as the section is named.",
    )
    augmentations: dict[str, Any] | None = key(
        None, "Class of albumentations, NodeDropout or InstanceDropout -> its arguments."
    )

    def __post_init__(self) -> None:
        if isinstance(self.n_chunks, float) and self.n_chunks > 1:
            raise ValueError(f"n_chunks: {self.n_chunks} must be a number of clips, or a share up to 1.0")
        sizes = self.crop_size if isinstance(self.crop_size, list) else [self.crop_size]
        if any(size is not None and size < 1 for size in sizes):
            raise ValueError(f"crop_size: {self.crop_size} must be at least 1")
        if self.anchors == [] or (isinstance(self.anchors, int) and self.anchors < 1):
            raise ValueError(f"anchors: {self.anchors} must be the name of a node, several, or a number of at least 1")

    @property
    def has_source(self) -> bool:
        return bool(self.slp_files or (self.dir is not None and self.dir.path))


DEFAULTS = Split(
    crop_size=CROP_SIZE,
    padding=0,
    clip_length=CLIP_LENGTH,
    anchors="centroid",
    handle_missing="centroid",
    dilation_radius_px=0,
)
SHARED = ("crop_size", "padding", "clip_length", "anchors", "handle_missing", "dilation_radius_px")


@dataclass
class Config:
    """YAML section `dataset` with `name: tracks`."""

    train_dataset: Split = field(
        default_factory=Split,
        metadata={"help": "Labels and videos for training; see Split for its keys.", "on_resume": TRAJECTORY},
    )
    val_dataset: Split | None = key(
        None, "The same for validation; null: the last frames of each training video.", on_resume=EVALUATION
    )
    test_dataset: Split | None = key(None, "The same for the test set; null: none.", on_resume=EVALUATION)
    val_frames: int | float = course(
        0.2,
        "Frames held out at the end of each video if there is no val_dataset: a number, or a share below 1.",
        ge=0,
        unless=("val_dataset.dir.path", "val_dataset.slp_files"),
    )
    scramble: Literal["none", "rot90"] = course(
        "none", "rot90: turn each frame, crops and coordinates, by a random multiple of 90°."
    )
    images: bool = key(True, "Cut crops from videos; false: coordinates alone, without videos.", on_resume=IMPOSSIBLE)
    channels: Literal[1, 3] = key(3, "Of each crop; gray is repeated to 3.", on_resume=IMPOSSIBLE, needs="images")
    image_size: list[int] | None = course(
        None,
        "Height and width in px for labels without a video; null: seqinfo.ini, or the extent of the labels.",
        unless=("images",),
    )
    cache_gb: float = key(
        8.0,
        "Cut crops once if those of a video take less on disk; 0: each time.",
        on_resume=HARMLESS,
        ge=0,
        needs="images",
    )
    tracker: TrackerSettings = field(
        default_factory=TrackerSettings,
        metadata={"help": "How detections become tracks, see TrackerSettings.", "on_resume": EVALUATION},
    )

    def __post_init__(self) -> None:
        if self.image_size is not None and (len(self.image_size) != 2 or min(self.image_size) < 1):
            raise ValueError(f"image_size: {self.image_size} must be height and width in px")
        if isinstance(self.val_frames, float) and self.val_frames >= 1:
            raise ValueError(f"val_frames: {self.val_frames} must be a number of frames, or a share below 1")
        for name in ("train", "val", "test"):
            section = getattr(self, f"{name}_dataset")
            if section is not None and section.dilation_radius_px and not self.images:
                raise ValueError(f"{name}_dataset.dilation_radius_px has no effect with images: false; leave one out")

    def split(self, name: str) -> Split:
        """The section of `train`, `val` or `test`, complete: what it leaves out is the training section's or a default.

        For `val` without a section of its own, what holds for the frames held out at the end of the training videos.
        """
        given = getattr(self, f"{name}_dataset") or Split()
        values = {item.name: getattr(given, item.name) for item in dataclasses.fields(Split)}
        for other in (self.train_dataset, DEFAULTS):
            values |= {key_name: getattr(other, key_name) for key_name in SHARED if values[key_name] is None}
        values["mode"] = values["mode"] or ("train" if name == "train" else "val")
        if values["chunk"] is None:
            values["chunk"] = "train" in (name, values["mode"])
        return Split(**values)


OF_SCORES = ("match_distance",)
HINTS = typing.get_type_hints(TrackerSettings)
FIELDS = [field for field in dataclasses.fields(TrackerSettings) if field.name not in OF_SCORES]


def without_effect(flags: Any, output: str | None) -> dict[str, str]:
    """See `data.processor`."""
    shows_unsure_frames = output is None or output.endswith(".slp")
    return {} if shows_unsure_frames else {"confidence_threshold": "only .slp files name unsure frames"}


VIDEO = key(None, "Tracks: the video of the labels. Default: the one beside them of their name.")
PredictFlags = dataclasses.make_dataclass(
    "PredictFlags",
    [
        ("video", str | None, VIDEO),
        *(
            (
                field.name,
                HINTS[field.name] | None,
                key(
                    None,
                    f"Tracks: {field.metadata['help']}. Default: as in training.",
                    **{name: value for name, value in field.metadata.items() if name != "help"},
                ),
            )
            for field in FIELDS
        ),
    ],
    namespace={"__module__": __name__, "without_effect": without_effect},
)


def with_flags(settings: TrackerSettings, flags: Any) -> TrackerSettings:
    """The settings with the flags that were given in their place."""
    given = {field.name: getattr(flags, field.name) for field in FIELDS if getattr(flags, field.name) is not None}
    return dataclasses.replace(settings, **given)
