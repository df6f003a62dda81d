"""Boxes and crops around the anchors of instances.

Letters: n instances of a frame, K nodes, A anchors, C channels of an image, S side of a crop in px.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence as Names
from dataclasses import dataclass

import numpy as np

FILE = "tracks.json"  # how crops are made, saved beside the model
CENTROIDS = ("centroid", "midpoint")  # names of the mean of the visible nodes, unless a node has that name


@dataclass(frozen=True)
class Cutter:
    """How instances become boxes and crops.

    Attributes:
        crop_size: Side of the box around an anchor in px, before padding.
        padding: Added to each side.
        anchors: Names of nodes or `centroid`; a number: so many, drawn by `with_anchors`.
        handle_missing: An instance without one of its anchors: `drop`, `ignore` (black crop, box 0) or `centroid`.
        dilation_radius_px: Pixels farther from all nodes are black; 0: none.
        side: S, the side of crops of all data sets; crops of another size are scaled to it.
    """

    crop_size: int
    padding: int = 0
    anchors: tuple[str, ...] | int = ("centroid",)
    handle_missing: str = "centroid"
    dilation_radius_px: int = 0
    side: int | None = None

    @property
    def box_side(self) -> int:
        return self.crop_size + 2 * self.padding

    @property
    def count(self) -> int:
        """A"""
        return self.anchors if isinstance(self.anchors, int) else len(self.anchors)

    def with_anchors(self, seed: tuple[int, ...], nodes: Names[str]) -> Cutter:
        """The cutter with anchors drawn from nodes and centroid, if their number is given."""
        if not isinstance(self.anchors, int):
            return self
        pool = [*nodes, *({"centroid"} - set(nodes))]
        drawn = np.random.default_rng(seed).permutation(len(pool))[: self.anchors]
        return dataclasses.replace(self, anchors=tuple(pool[place] for place in drawn))

    def centres(self, points: np.ndarray, nodes: Names[str]) -> tuple[np.ndarray, np.ndarray]:
        """(which instances stay, (n,) bool; their anchors (n, A, 2) x y px, NaN where one is missing)

        Args:
            points: (n, K, 2)
        """
        visible = ~np.isnan(points).any(-1)
        total = np.where(visible[..., None], points, 0).sum(1)
        centroid = total / np.maximum(visible.sum(1), 1)[:, None]
        columns = [points[:, nodes.index(name)] if name in nodes else centroid for name in self.anchors]
        centres = np.stack(columns, axis=1)
        stays = visible.any(1)
        missing = np.isnan(centres).any(-1)
        if self.handle_missing == "drop":
            stays &= ~missing.any(1)
        elif self.handle_missing == "centroid":
            centres = np.where(missing[..., None], centroid[:, None], centres)
        return stays, centres[stays]

    def boxes(self, centres: np.ndarray) -> np.ndarray:
        """(n, A, 2) x y -> (n, A, 4) y1 x1 y2 x2 in px; 0 for a missing anchor."""
        half = self.box_side / 2
        y, x = centres[..., 1], centres[..., 0]
        return np.nan_to_num(np.stack([y - half, x - half, y + half, x + half], -1)).astype(np.float32)

    def crops(self, image: np.ndarray, centres: np.ndarray, points: np.ndarray) -> np.ndarray:
        """(H, W, C) uint8 -> (n, A·C, S, S) uint8, black outside of the image and for a missing anchor.

        Args:
            centres: (n, A, 2) x y px
            points: (n, K, 2), the nodes around which pixels stay with `dilation_radius_px`
        """
        side = self.box_side
        cut = np.zeros((*centres.shape[:2], side, side, image.shape[2]), np.uint8)
        for row, column in zip(*np.nonzero(~np.isnan(centres).any(-1)), strict=True):
            left, top = np.floor(centres[row, column] - side / 2 + 0.5).astype(int)
            window = cut[row, column]
            cut_into(window, image, top, left)
            if self.dilation_radius_px:
                window[~near(points[row] - (left, top), side, self.dilation_radius_px)] = 0
        cut = self.scaled(cut)
        channels = cut.shape[1] * cut.shape[4]
        return np.ascontiguousarray(cut.transpose(0, 1, 4, 2, 3).reshape(len(cut), channels, *cut.shape[2:4]))

    def scaled(self, cut: np.ndarray) -> np.ndarray:
        """(n, A, s, s, C) -> (n, A, S, S, C)"""
        side = self.side or self.box_side
        if side == cut.shape[2]:
            return cut
        import cv2

        scaled = np.zeros((*cut.shape[:2], side, side, cut.shape[-1]), np.uint8)
        for place in np.ndindex(cut.shape[:2]):
            scaled[place] = cv2.resize(cut[place], (side, side), interpolation=cv2.INTER_AREA).reshape(side, side, -1)
        return scaled


def cut_into(window: np.ndarray, image: np.ndarray, top: int, left: int) -> None:
    """Copy the part of the image that begins at (top, left) into `window` (s, s, C), where there is one."""
    side, (height, width) = len(window), image.shape[:2]
    y0, y1 = max(top, 0), min(top + side, height)
    x0, x1 = max(left, 0), min(left + side, width)
    if y0 < y1 and x0 < x1:
        window[y0 - top : y1 - top, x0 - left : x1 - left] = image[y0:y1, x0:x1]


def near(points: np.ndarray, side: int, radius: int) -> np.ndarray:
    """(side, side) bool: pixels within a radius of one of the points (K, 2) x y."""
    points = points[~np.isnan(points).any(-1)]
    y, x = np.mgrid[:side, :side]
    distance = (x[..., None] - points[:, 0]) ** 2 + (y[..., None] - points[:, 1]) ** 2
    return (distance <= radius**2).any(-1)
