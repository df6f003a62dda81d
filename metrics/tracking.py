"""Scores of multi-object tracking from identities and similarities, in float64; NumPy and SciPy only.

Shapes: n true instances of a frame, m predicted ones, O true identities, P predicted ones. A similarity is from 0 to 1:
the intersection over union of two boxes, or 1 - distance / (2 · limit); two instances match from `HALF` on, which for
distances is up to the limit.

Sources: CLEAR MOT, Bernardin and Stiefelhagen 2008, doi:10.1155/2008/246309; IDF1, Ristani et al. 2016,
arXiv:1609.01775; HOTA, Luiten et al. 2020, arXiv:2009.07736.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

HALF = 0.5
THRESHOLDS = np.arange(1, 20) / 20  # of HOTA
DIRECTIONS = {
    **dict.fromkeys(("idf1", "mota", "hota"), "max"),
    **dict.fromkeys(("switches", "fragmentations", "misses", "false_positives"), "min"),
}


def iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (n, 4) and (m, 4), y1 x1 y2 x2 -> (n, m); 0 for boxes without area."""
    first, second = np.asarray(first, np.float64)[:, None], np.asarray(second, np.float64)[None]
    sides = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
    common = sides.clip(min=0).prod(-1)
    total = (first[..., 2:] - first[..., :2]).prod(-1) + (second[..., 2:] - second[..., :2]).prod(-1) - common
    return np.divide(common, total, out=np.zeros_like(common), where=total > 0)


def distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Euclidean distances of points (n, 2) and (m, 2) -> (n, m)."""
    return np.linalg.norm(np.asarray(first, np.float64)[:, None] - np.asarray(second, np.float64)[None], axis=-1)


def closeness(first: np.ndarray, second: np.ndarray, limit: float) -> np.ndarray:
    """Similarity by distance of points (n, 2) and (m, 2): 1 at distance 0, `HALF` at the limit -> (n, m)."""
    return (1 - distances(first, second) / (2 * limit)).clip(min=0)


class TrackingScores:
    """Collects the frames of any number of videos, in their order, and scores them together."""

    def __init__(self) -> None:
        self.frames: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.numbers: dict[tuple[str, Hashable, int], int] = {}
        self.clear = ClearMot()

    def add(self, video: Hashable, truth: Sequence[int], predicted: Sequence[int], similarity: np.ndarray) -> None:
        """Add one frame.

        Args:
            video: Identities of different videos are different ones.
            truth: (n,) true identities.
            predicted: (m,) predicted identities, each once.
            similarity: (n, m)
        """
        rows = np.array([self._number("truth", video, identity) for identity in truth], int)
        columns = np.array([self._number("predicted", video, identity) for identity in predicted], int)
        similarity = np.asarray(similarity, np.float64).reshape(len(rows), len(columns))
        self.frames.append((rows, columns, similarity))
        self.clear.add(rows, columns, similarity)

    def _number(self, kind: str, video: Hashable, identity: int) -> int:
        return self.numbers.setdefault((kind, video, int(identity)), len(self.numbers))

    def compute(self) -> dict[str, float]:
        """The values of `DIRECTIONS`; NaN where nothing is there to be scored."""
        if not any(len(rows) for rows, _, _ in self.frames):
            return dict.fromkeys(DIRECTIONS, math.nan)
        return {"idf1": idf1(self.frames), "hota": hota(self.frames), **self.clear.compute()}


class ClearMot:
    """Misses, false positives, switches and fragmentations, frame by frame.

    An identity keeps its last partner wherever the two still match; the others are matched by the Hungarian algorithm.
    """

    def __init__(self) -> None:
        self.partner: dict[int, int] = {}
        self.was_missed: dict[int, bool] = {}
        self.counts = Counter(dict.fromkeys(("objects", "switches", "fragmentations", "misses", "false_positives"), 0))

    def add(self, truth: np.ndarray, predicted: np.ndarray, similarity: np.ndarray) -> None:
        """Add one frame: (n,), (m,), (n, m)."""
        pairs, column = {}, {int(identity): index for index, identity in enumerate(predicted)}
        for row, identity in enumerate(truth.tolist()):
            kept = column.get(self.partner.get(identity, -1))
            if kept is not None and similarity[row, kept] >= HALF and kept not in pairs.values():
                pairs[row] = kept
        rest = similarity.copy()
        rest[list(pairs)], rest[:, list(pairs.values())] = 0, 0
        for row, index in matched(rest, HALF):
            identity, partner = int(truth[row]), int(predicted[index])
            self.counts["switches"] += self.partner.get(identity, partner) != partner
            pairs[row] = index
        for row, identity in enumerate(truth.tolist()):
            if row in pairs:
                self.partner[identity] = int(predicted[pairs[row]])
                self.counts["fragmentations"] += self.was_missed.get(identity, False)
            if identity in self.partner:  # before the first match nothing is interrupted
                self.was_missed[identity] = row not in pairs
        self.counts["objects"] += len(truth)
        self.counts["misses"] += len(truth) - len(pairs)
        self.counts["false_positives"] += len(predicted) - len(pairs)

    def compute(self) -> dict[str, float]:
        counts = dict(self.counts)
        objects = counts.pop("objects")
        errors = counts["misses"] + counts["false_positives"] + counts["switches"]
        return {"mota": 1 - errors / objects if objects else math.nan, **counts}


def matched(similarity: np.ndarray, least: float) -> list[tuple[int, int]]:
    """As many pairs as possible whose similarity is at least `least`, and of those the most similar ones."""
    allowed = similarity >= least
    rows, columns = linear_sum_assignment(np.where(allowed, similarity + min(similarity.shape), 0), maximize=True)
    return [(int(row), int(column)) for row, column in zip(rows, columns, strict=True) if allowed[row, column]]


def idf1(frames: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> float:
    """2 · matches / (true + predicted instances), with one predicted identity for each true one that matches best."""
    both: Counter[tuple[int, int]] = Counter()
    total = 0
    for truth, predicted, similarity in frames:
        total += len(truth) + len(predicted)
        both.update((int(truth[row]), int(predicted[column])) for row, column in np.argwhere(similarity >= HALF))
    counts = table(both)
    return 2 * float(counts[linear_sum_assignment(counts, maximize=True)].sum()) / total


def hota(frames: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> float:
    """Mean over 19 thresholds of the geometric mean of detection and association accuracy."""
    shares: defaultdict[tuple[int, int], float] = defaultdict(float)
    seen: Counter[int] = Counter()
    for truth, predicted, similarity in frames:
        seen.update(truth.tolist())
        seen.update(predicted.tolist())
        total = similarity.sum(0, keepdims=True) + similarity.sum(1, keepdims=True) - similarity
        share = np.divide(similarity, total, out=np.zeros_like(similarity), where=total > 0)
        for row, column in np.argwhere(share > 0):
            shares[int(truth[row]), int(predicted[column])] += float(share[row, column])
    alignment = {(one, other): value / (seen[one] + seen[other] - value) for (one, other), value in shares.items()}
    matches: list[Counter[tuple[int, int]]] = [Counter() for _ in THRESHOLDS]
    for truth, predicted, similarity in frames:
        pairs = [alignment.get((one, other), 0.0) for one in truth.tolist() for other in predicted.tolist()]
        weights = np.reshape(pairs, similarity.shape) * similarity
        for row, column in zip(*linear_sum_assignment(weights, maximize=True), strict=True):
            pair = int(truth[row]), int(predicted[column])
            for counter, threshold in zip(matches, THRESHOLDS, strict=True):
                counter[pair] += bool(similarity[row, column] >= threshold - np.finfo(float).eps)
    instances = sum(len(truth) + len(predicted) for truth, predicted, _ in frames)
    values = []
    for counter in matches:
        hits = counter.total()
        association = sum(count * count / (seen[one] + seen[other] - count) for (one, other), count in counter.items())
        values.append(math.sqrt(association / (instances - hits)))  # sqrt(hits / (…) · association / hits)
    return float(np.mean(values))


def table(counts: Counter[tuple[int, int]]) -> np.ndarray:
    """Counts of pairs as an array (O, P) over the identities that have any."""
    rows, columns = ({name: index for index, name in enumerate({pair[side] for pair in counts})} for side in (0, 1))
    array = np.zeros((len(rows), len(columns)))
    for (one, other), count in counts.items():
        array[rows[one], columns[other]] = count
    return array
