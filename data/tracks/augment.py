"""Augmentation of the frames of a clip: the transforms of albumentations by their names, and dropout of labels.

What moves pixels (rotations, flips, crops) is the same in all frames of a clip, so that motion stays what it was; what
changes their values (noise, blur, brightness) and dropout are drawn for each frame. All random numbers are a function
of the seed of the clip, the place in the list, and the frame.

Letters: n instances of a frame, K nodes.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from data.tracks.recording import Frame, Moved, Recording
from storage.suggestions import did_you_mean

Seed = tuple[int, ...]
OTHER_TYPES = ("FromFloat", "Normalize", "ToFloat", "ToTensor3D", "ToTensorV2")  # their images are not 8 bits wide


class Augment:
    """Changes the frames of a recording, one after another; a step is (image, instances, seed, frame) -> both.

    Args:
        augmentations: Name -> arguments.

    Raises:
        ValueError: an unknown name, or arguments that its class does not take.
    """

    def __init__(self, augmentations: Mapping[str, Any]):
        self.augmentations = dict(augmentations)
        self.steps = [step_of(name, {} if options is None else options) for name, options in augmentations.items()]

    def __reduce__(self) -> tuple[type, tuple[dict[str, Any]]]:
        return Augment, (self.augmentations,)  # transforms are made again in a worker

    def without_images(self) -> list[str]:
        """Names that change nothing where there are coordinates alone."""
        pairs = zip(self.augmentations, self.steps, strict=True)
        return [name for name, step in pairs if isinstance(step, Albumentation) and not step.moves_pixels]

    def __call__(self, recording: Recording, seed: Seed, drops: bool = True) -> Iterator[Frame]:
        """The frames of a recording.

        Args:
            drops: Leave out what dropout leaves out.
        """
        blank = np.zeros((*recording.size, 1), np.uint8)
        for index, image in recording.numbered_images():
            changed, moved = blank if image is None else image, recording.instances(index)
            for number, step in enumerate(self.steps):
                if drops or not isinstance(step, Dropout):
                    changed, moved = step(changed, moved, (*seed, number), index)
            yield recording.frame(index, None if image is None else changed, moved.take(is_inside(moved)))


def is_inside(moved: Moved) -> np.ndarray:
    """(n,) bool: instances with a node inside of the frame."""
    x, y = moved.points[..., 0], moved.points[..., 1]
    return ((x >= 0) & (y >= 0) & (x < moved.size[1]) & (y < moved.size[0])).any(-1)


def step_of(name: str, options: Any) -> Albumentation | Dropout:
    """The augmentation of a name; ValueError of one line if there is none, or if it does not take the arguments."""
    if name in OTHER_TYPES:
        raise ValueError(f"augmentations.{name}: crops stay 8-bit images, which the model normalizes; leave it out")
    if not isinstance(options, Mapping):
        raise ValueError(f"augmentations.{name}: {options} is no mapping; write {name}: {{argument: value}}")
    kinds = {"NodeDropout": NodeDropout, "InstanceDropout": InstanceDropout}
    if name not in kinds:
        library = albumentations()
        kinds |= {
            kind: value
            for kind, value in vars(library).items()
            if isinstance(value, type) and issubclass(value, library.BasicTransform)
        }
    if name not in kinds:
        hint = did_you_mean(name, kinds, f"; there are {', '.join(kinds)}")
        raise ValueError(f"augmentations: there is no {name}{hint}")
    known = inspect.signature(kinds[name]).parameters
    if unknown := [key for key in options if key not in known]:
        hint = did_you_mean(unknown[0], known, f"; there are {', '.join(known)}")
        raise ValueError(f"augmentations.{name} has no argument `{unknown[0]}`{hint}")
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    try:
        made = kinds[name](**options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"augmentations.{name}: {' '.join(str(error).split())}") from None
    return made if isinstance(made, Dropout) else Albumentation(made)


def albumentations() -> Any:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for a newer version
    try:
        import albumentations
    except ImportError:
        raise ValueError("augmentations need albumentations; pip install 'keel[tracking]'") from None
    return albumentations


class Albumentation:
    """A transform of albumentations 2.0.8, applied to the image, the nodes, and the corners of boxes."""

    def __init__(self, transform: Any):
        library = albumentations()
        self.moves_pixels = isinstance(transform, library.DualTransform)
        keypoints = library.KeypointParams("xy", remove_invisible=False) if self.moves_pixels else None
        self.compose = library.Compose([transform], keypoint_params=keypoints)

    def __call__(self, image: np.ndarray, moved: Moved, seed: Seed, index: int) -> tuple[np.ndarray, Moved]:
        random = np.random.default_rng(seed if self.moves_pixels else [*seed, index])
        self.compose.set_random_seed(int(random.integers(2**31)))
        if not self.moves_pixels:
            return self.compose(image=image)["image"].reshape(image.shape), moved
        boxes = np.zeros((0, 4), np.float32) if moved.boxes is None else moved.boxes
        corners = boxes[:, [[1, 0], [3, 0], [3, 2], [1, 2]]]  # (n, 4, 2) x y
        places = np.concatenate([moved.points.reshape(-1, 2), corners.reshape(-1, 2)])
        is_missing = np.isnan(places).any(-1, keepdims=True)
        changed = self.compose(image=image, keypoints=np.where(is_missing, 0, places))
        places = np.where(is_missing, np.nan, np.asarray(changed["keypoints"], np.float32).reshape(-1, 2))
        points, corners = np.split(places, [moved.points.size // 2])
        corners = corners.reshape(-1, 4, 2)[..., ::-1]
        boxes = None if moved.boxes is None else np.concatenate([corners.min(1), corners.max(1)], -1)
        image = changed["image"].reshape(*changed["image"].shape[:2], image.shape[2])
        return image, Moved(moved.rows, points.reshape(moved.points.shape), boxes, image.shape[:2])


@dataclasses.dataclass
class Dropout:
    """Leave out labels of a frame.

    Attributes:
        p: Probability that a label is left out; with `n`, that `n` of the frame are.
        n: How many at once; None: each is drawn for itself.
    """

    p: float = 0.5
    n: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1 or (self.n is not None and self.n < 1):
            raise ValueError("p must be from 0 to 1, and n at least 1")

    def stays(self, count: int, seed: Seed, index: int) -> np.ndarray:
        """(count,) bool: which labels of a frame stay."""
        random = np.random.default_rng([*seed, index])
        if self.n is None:
            return random.random(count) >= self.p
        stays = np.ones(count, bool)
        if random.random() < self.p:
            stays[random.permutation(count)[: self.n]] = False
        return stays


class InstanceDropout(Dropout):
    """Leave out instances."""

    def __call__(self, image: np.ndarray, moved: Moved, seed: Seed, index: int) -> tuple[np.ndarray, Moved]:
        return image, moved.take(self.stays(len(moved.rows), seed, index))


class NodeDropout(Dropout):
    """Leave out nodes of the skeleton, of all instances of a frame."""

    def __call__(self, image: np.ndarray, moved: Moved, seed: Seed, index: int) -> tuple[np.ndarray, Moved]:
        stays = self.stays(moved.points.shape[1], seed, index)
        points = np.where(stays[:, None], moved.points, np.float32(np.nan))
        return image, dataclasses.replace(moved, points=points)
