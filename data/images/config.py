"""Configuration keys of images; importing this needs only the standard library."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Literal

from storage.config_keys import EVALUATION, HARMLESS, IMPOSSIBLE, TRAJECTORY, key

fixed = functools.partial(key, on_resume=IMPOSSIBLE)  # another value would be other data


@dataclass
class Augmentation:
    """`dataset.augment`: what is done to training batches; a probability or strength of 0 turns one off."""

    crop_scale: list[float] = key([0.8, 1.0], "share of the image's area that a random crop keeps, from and to")
    crop_ratio: list[float] = key([0.75, 1.3333], "width by height of a random crop, from and to")
    flip: float = key(0.5, "probability of a horizontal flip", ge=0, le=1)
    vertical_flip: float = key(0.0, "probability of a vertical flip", ge=0, le=1)
    brightness: float = key(0.2, "largest relative change", ge=0)
    contrast: float = key(0.2, "largest relative change", ge=0)
    saturation: float = key(0.2, "largest relative change", ge=0)
    hue: float = key(0.05, "largest rotation, in turns", ge=0, le=0.5)
    rand_augment: int = key(0, "number of RandAugment's operations (needs kornia); 0: none", ge=0)
    rand_augment_magnitude: int = key(9, "their strength, of 30", ge=0, le=30, needs="rand_augment")
    erasing: float = key(0.0, "probability that a random rectangle is erased", ge=0, le=1)
    mixup: float = key(0.0, "alpha of MixUp's Beta distribution; 0: none", ge=0)
    cutmix: float = key(0.0, "alpha of CutMix's Beta distribution; 0: none. With mixup, half of the batches each", ge=0)

    def __post_init__(self) -> None:
        for name in ("crop_scale", "crop_ratio"):
            values = getattr(self, name)
            low, high = values if len(values) == 2 else (1, 0)
            if not 0 < low <= high or (name == "crop_scale" and high > 1):
                raise ValueError(f"`{name}: {values}` must be two positive numbers, from and to (a share is at most 1)")


@dataclass(eq=False)  # compared by identity: what was read for a configuration is kept with it (see splits.py)
class Config:
    """YAML section `dataset` with `name: images`."""

    path: str | None = key(
        None,
        "Table of images (.csv, .tsv, .parquet), folder with a subfolder per class, or hub id.",
        on_resume=IMPOSSIBLE,
    )
    root: str | None = key(
        None, "Folder that paths in the tables are relative to; null: the table's own.", is_path=True
    )
    eval_path: str | None = key(
        None,
        "The same for validation; null: a split of its own, or eval_fraction.",
        on_resume=EVALUATION,
        is_path=True,
    )
    test_path: str | None = key(
        None,
        "The same for the test set; null: a split of its own, or none.",
        on_resume=EVALUATION,
        is_path=True,
    )
    split_column: str | None = fixed(None, "Column that says train, val or test.")
    eval_fraction: float | None = fixed(
        None, "Share of the training images held out; null: .1 if nothing else is.", ge=0, lt=1, unless=("eval_path",)
    )
    test_fraction: float = fixed(
        0.0, "Share of the training images held out as test set.", ge=0, lt=1, unless=("test_path",)
    )
    group_column: str | None = fixed(None, "Images of one group stay on one side of a drawn split.")
    path_column: str | None = key(None, "Column of paths; null: local_path, path, file_name, image …")
    labels: list[str] | None = fixed(None, "Label columns; null: all columns of 0 and 1.")
    label_column: str | None = fixed(None, "One column with the class, or with a list of labels.")
    label_separator: str | None = fixed(
        None, "Separates the labels in label_column; null: one class each.", needs="label_column"
    )
    dataset_base_dir: str | None = key(None, "LADI's base folder, with folders v1 and v2.", is_path=True)
    dataset_config_name: str | None = key(None, "LADI's set: v1_damage, v1_infrastructure, v2, v2a, v2_resized …")
    train_split: Literal["train", "all"] = fixed("train", "LADI: all trains on validation too.")
    image_size: int | None = fixed(None, "Pixels of a side; null: the pretrained model's, or 224.", ge=8)
    channels: Literal[1, 3, 4] = fixed(3, "1: gray; 4: RGB and alpha.")
    resize: Literal["stretch", "crop", "pad"] = fixed("stretch", "How an image that is not square is made so.")
    mean: list[float] | None = fixed(None, "Of each channel, 0 to 1; null: the pretrained model's, or ImageNet's.")
    std: list[float] | None = fixed(None, "As mean.")
    cache_gb: float = key(
        32.0, "Decode all images once if they take less on disk; 0: decode each time.", on_resume=HARMLESS, ge=0
    )
    on_bad_image: Literal["error", "skip"] = fixed("error", "An image that cannot be read.")
    sampling: Literal["uniform", "weighted"] = key(
        "uniform", "weighted: images with rare labels more often.", on_resume=TRAJECTORY
    )
    augment: bool = key(True, "Augment training images as `augmentation` says.", on_resume=TRAJECTORY)
    augmentation: Augmentation = field(
        default_factory=Augmentation, metadata={"help": "Its keys, see Augmentation.", "needs": "augment"}
    )

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None and len(values) != self.channels:
                raise ValueError(f"`{name}` has {len(values)} numbers for {self.channels} channels; give one for each")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"`std: {self.std}` must be positive numbers: images are divided by them")
        if self.labels is not None and len(set(self.labels)) < len(self.labels):
            raise ValueError(f"`labels: {self.labels}` names one column twice")
        if self.label_separator == "":
            raise ValueError('`label_separator` is empty; give a character, quoted in YAML: "|"')
        if (self.mean is None) != (self.std is None):
            raise ValueError("`mean` and `std` belong together; give both or none")
        if self.labels is not None and self.label_column is not None:
            raise ValueError("`labels` and `label_column` are two ways to say the labels; give one")
