"""Configuration keys of tracks; importing this needs only the standard library."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass, field
from typing import Any, Literal

from storage.config_keys import EVALUATION, IMPOSSIBLE, key

fixed = functools.partial(key, on_resume=IMPOSSIBLE)  # another value would be other data
CLIP_LENGTH, CROP_SIZE = 32, 128


@dataclass
class Directory:
    """`dir`: folders with labels and videos, paired by their names."""

    path: str | list[str] | None = key(None, "Folder with labels and videos, or several.", is_path=True)
    labels_suffix: str | None = key(None, "Ending of the label files; null: the kind that is there.")
    vid_suffix: str | None = key(None, "Ending of the videos; null: whatever has the name of the labels.")


@dataclass
class Split:
    """`train_dataset`, `val_dataset` or `test_dataset`; the last two take what they leave out from the first."""

    dir: Directory | None = key(None, "Folders with labels and videos, paired by their names.")
    slp_files: list[str] | None = key(None, "Label files, in place of dir; any format that is read.", is_path=True)
    video_files: list[str] | None = key(None, "Their videos, in the same order.", is_path=True)
    crop_size: int | list[int] | None = key(
        None, f"Side of the square around each instance, in px; a list: one for each folder or file [{CROP_SIZE}]."
    )
    padding: int | None = key(None, "Added to each side of that square, in px [0].", ge=0)
    clip_length: int | None = key(None, f"Frames of a clip [{CLIP_LENGTH}].", ge=2)
    chunk: bool | None = key(None, "Cut videos into clips; false: a whole video is one clip [true].")
    n_chunks: int | float | None = key(
        None, "Clips drawn once from all, a number or a share below 1; null or 1.0: all.", gt=0
    )
    anchors: str | list[str] | int | None = key(
        None, "Where crops are centred: a node or centroid, several, or a number of random ones [centroid]."
    )
    handle_missing: Literal["drop", "ignore", "centroid"] | None = key(
        None, "Without its anchor an instance is left out, has a black crop, or is cut at its centroid [centroid]."
    )
    dilation_radius_px: int | None = key(None, "Black out crops farther from all nodes; 0: nothing [0].", ge=0)
    mode: Literal["train", "val"] | None = key(
        None, "train: random numbers are drawn anew in each epoch; val: once. null: by the name of the section."
    )
    augmentations: dict[str, Any] | None = key(
        None, "Class of albumentations, NodeDropout or InstanceDropout -> its arguments."
    )


DEFAULTS = Split(
    crop_size=CROP_SIZE,
    padding=0,
    clip_length=CLIP_LENGTH,
    chunk=True,
    anchors="centroid",
    handle_missing="centroid",
    dilation_radius_px=0,
    mode="train",
)
OF_THE_FIRST = ("crop_size", "padding", "clip_length", "chunk", "anchors", "handle_missing", "dilation_radius_px")


@dataclass
class Config:
    """YAML section `dataset` with `name: tracks`."""

    train_dataset: Split = field(
        default_factory=Split,
        metadata={"help": "Labels and videos for training; see Split for its keys.", "on_resume": IMPOSSIBLE},
    )
    val_dataset: Split | None = key(
        None, "The same for validation; null: the last frames of each training video.", on_resume=EVALUATION
    )
    test_dataset: Split | None = key(None, "The same for the test set; null: none.", on_resume=EVALUATION)
    val_frames: int | float = fixed(
        0.2, "Frames held out at the end of each video if there is no val_dataset: a number, or a share below 1.", ge=0
    )
    scramble: Literal["none", "rot90"] = fixed(
        "none", "rot90: turn each frame, crops and coordinates, by a random multiple of 90°."
    )
    images: bool = fixed(True, "Cut crops from videos; false: coordinates alone, without videos.")
    channels: Literal[1, 3] = fixed(3, "Of each crop; gray is repeated to 3.")
    image_size: list[int] | None = fixed(
        None, "Height and width in px for labels without a video; null: seqinfo.ini, or the extent of the labels."
    )

    def split(self, name: str) -> Split:
        """`train`, `val` or `test` with all values filled in: the section's, the training section's, the default."""
        chosen = getattr(self, f"{name}_dataset")
        below = [self.train_dataset, DEFAULTS]
        values = {field.name: getattr(chosen, field.name) for field in dataclasses.fields(Split)}
        for other in below:
            for key_name in OF_THE_FIRST:
                if values[key_name] is None:
                    values[key_name] = getattr(other, key_name)
        if values["mode"] is None:
            values["mode"] = "train" if name == "train" or values["augmentations"] else "val"
        return Split(**values)
