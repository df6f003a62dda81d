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
import warnings
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any, Protocol

import numpy as np

from data.tracks.recording import Frame, Moved, Recording

Seed = tuple[int, ...]


class Step(Protocol):
    """One augmentation: (image, instances of the frame, seed of the clip, frame) -> both, changed."""

    def __call__(self, image: np.ndarray, moved: Moved, seed: Seed, index: int) -> tuple[np.ndarray, Moved]: ...


class Augment:
    """Changes the frames of a recording, one after another.

    Args:
        augmentations: Name -> arguments.

    Raises:
        ValueError: an unknown name, or arguments that its class does not take.
    """

    def __init__(self, augmentations: Mapping[str, Any]):
        self.augmentations = dict(augmentations)
        self.steps: list[Step] | None = [step_of(name, options) for name, options in augmentations.items()]

    @property
    def keeps_crops(self) -> bool:
        """Whether it only leaves instances out, so that crops can come from the cache."""
        return set(self.augmentations) <= {"InstanceDropout"}

    def __getstate__(self) -> dict[str, Any]:
        return {"augmentations": self.augmentations, "steps": None}  # built again in a worker

    def __call__(self, recording: Recording, seed: Seed, drops: bool = True) -> Iterator[Frame]:
        """The frames of a recording.

        Args:
            drops: Leave out what dropout leaves out.
        """
        if self.steps is None:
            self.steps = [step_of(name, options) for name, options in self.augmentations.items()]
        blank = np.zeros((*recording.size, 1), np.uint8)
        images = [None] * len(recording) if recording.crops is not None else recording.images()
        for index, image in zip(range(recording.start, recording.stop), images, strict=True):
            changed, moved = blank if image is None else image, recording.instances(index)
            for number, step in enumerate(self.steps):
                if drops or not isinstance(step, Dropout):
                    changed, moved = step(changed, moved, (*seed, number), index)
            yield recording.frame(index, None if image is None else changed, moved.take(is_inside(moved)))


def is_inside(moved: Moved) -> np.ndarray:
    """(n,) bool: instances with a node inside of the frame."""
    x, y = moved.points[..., 0], moved.points[..., 1]
    return ((x >= 0) & (y >= 0) & (x < moved.size[1]) & (y < moved.size[0])).any(-1)


def step_of(name: str, options: Mapping[str, Any] | None) -> Step:
    """The augmentation of a name; ValueError of one line if there is none, or if it does not take the arguments."""
    options = dict(options or {})
    if name in DROPOUTS:
        known = [field.name for field in dataclasses.fields(DROPOUTS[name])]
        if unknown := [key for key in options if key not in known]:
            raise ValueError(f"augmentations.{name} has no argument `{unknown[0]}`{nearest(unknown[0], known)}")
        return DROPOUTS[name](**options)
    return Albumentation(name, options)


def nearest(word: str, known: list[str]) -> str:
    near = get_close_matches(word, known, 1, 0.5)
    return f"; did you mean `{near[0]}`?" if near else f"; there are {', '.join(known)}"


class Albumentation:
    """A transform of albumentations 2.0.8, applied to the image, the nodes, and the corners of boxes."""

    def __init__(self, name: str, options: Mapping[str, Any]):
        library = albumentations()
        kinds = {
            kind: value
            for kind, value in vars(library).items()
            if isinstance(value, type) and issubclass(value, library.BasicTransform)
        }
        if name not in kinds:
            raise ValueError(f"augmentations: there is no {name}{nearest(name, [*kinds, *DROPOUTS])}")
        transform = built(kinds[name], name, options)
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
        parts = [moved.points.reshape(-1, 2), corners.reshape(-1, 2)]
        places = np.concatenate(parts)
        is_missing = np.isnan(places).any(-1)
        changed = self.compose(image=image, keypoints=np.where(is_missing[:, None], 0, places))
        places = np.where(is_missing[:, None], np.nan, np.asarray(changed["keypoints"], np.float32).reshape(-1, 2))
        points, corners = np.split(places, [len(parts[0])])
        corners = corners.reshape(-1, 4, 2)[..., ::-1]
        boxes = None if moved.boxes is None else np.concatenate([corners.min(1), corners.max(1)], -1)
        image = changed["image"].reshape(*changed["image"].shape[:2], image.shape[2])
        return image, Moved(moved.rows, points.reshape(moved.points.shape), boxes, image.shape[:2])


def built(kind: type, name: str, options: Mapping[str, Any]) -> Any:
    """An instance of a transform; what albumentations only warns of is an error too."""
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            transform = kind(**options)
        except (TypeError, ValueError) as error:
            raise ValueError(f"augmentations.{name}: {' '.join(str(error).split())}") from None
    if unknown := [key for key in options if key not in inspect.signature(kind).parameters]:
        known = list(inspect.signature(kind).parameters)
        raise ValueError(f"augmentations.{name} has no argument `{unknown[0]}`{nearest(unknown[0], known)}")
    if caught:
        raise ValueError(f"augmentations.{name}: {caught[0].message}")
    return transform


def albumentations() -> Any:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for a newer version
    try:
        import albumentations
    except ImportError:
        raise ValueError("augmentations need albumentations; pip install 'keel[tracking]'") from None
    return albumentations


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
            raise ValueError(f"augmentations.{type(self).__name__}: p must be from 0 to 1 and n at least 1")

    def left(self, count: int, seed: Seed, index: int) -> np.ndarray:
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
        return image, moved.take(self.left(len(moved.rows), seed, index))


class NodeDropout(Dropout):
    """Leave out nodes of the skeleton, of all instances of a frame."""

    def __call__(self, image: np.ndarray, moved: Moved, seed: Seed, index: int) -> tuple[np.ndarray, Moved]:
        stays = self.left(moved.points.shape[1], seed, index)
        points = np.where(stays[:, None], moved.points, np.float32(np.nan))
        return image, dataclasses.replace(moved, points=points)


DROPOUTS = {"NodeDropout": NodeDropout, "InstanceDropout": InstanceDropout}
