"""Scores of tracking against hand calculations, motmetrics, and its figures of MOTChallenge's files."""

import csv
import math

import numpy as np
import pytest
from documents import SHARED

from metrics import tracking
from metrics.tracking import TrackingScores

CHALLENGE = SHARED / "data/tracking/motchallenge"
FIGURES = {
    "TUD-Campus": (0.557659, 0.526462, 7, 13, 150),
    "TUD-Stadtmitte": (0.644619, 0.564014, 7, 45, 452),
}


def challenge_frames(name):
    """Frame -> (identities, boxes y1x1y2x2) of truth and of predictions; gt.txt rows of confidence 0 are left out."""
    tables = []
    for file in ("gt.txt", "test.txt"):
        frames = {}
        for row in csv.reader((CHALLENGE / name / file).read_text().splitlines()):
            frame, identity, left, top, width, height, confidence = map(float, row[:7])
            if file == "test.txt" or confidence >= 1:
                frames.setdefault(int(frame), []).append((int(identity), (top, left, top + height, left + width)))
        tables.append(frames)
    for frame in sorted({*tables[0], *tables[1]}):
        yield [
            (
                [identity for identity, _ in table.get(frame, ())],
                np.array([box for _, box in table.get(frame, ())]).reshape(-1, 4),
            )
            for table in tables
        ]


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_the_published_figures_of_motchallenge(name):
    if not (CHALLENGE / name).is_dir():
        pytest.skip(f"{CHALLENGE / name} is not there")
    scores = TrackingScores()
    for (truth, boxes), (predicted, others) in challenge_frames(name):
        scores.add(name, truth, predicted, tracking.iou(boxes, others))
    values = scores.compute()
    names = ("idf1", "mota", "switches", "false_positives", "misses")
    assert [values[key] for key in names] == pytest.approx(FIGURES[name], abs=1e-6)


def random_video(generator, frames=40):
    """Identities and similarities of a video with misses, false positives and swapped identities."""
    order = generator.permutation(8)
    for _ in range(frames):
        if generator.random() < 0.15:
            order = generator.permutation(8)
        truth = np.flatnonzero(generator.random(6) < 0.8)
        shown = np.flatnonzero(generator.random(8) < 0.8)
        similarity = generator.random((len(truth), len(shown))) * 0.6
        similarity[order[truth][:, None] == shown[None]] += 0.4
        yield truth, shown, similarity


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_clear_and_identity_scores_are_those_of_motmetrics(seed):
    motmetrics = pytest.importorskip("motmetrics")
    frames = list(random_video(np.random.default_rng(seed)))
    accumulator, scores = motmetrics.MOTAccumulator(auto_id=True), TrackingScores()
    for truth, shown, similarity in frames:
        accumulator.update(truth, shown, np.where(similarity >= 0.5, 1 - similarity, np.nan))
        scores.add(0, truth, shown, similarity)
    names = {"idf1": "idf1", "mota": "mota", "num_switches": "switches", "num_misses": "misses"}
    names |= {"num_false_positives": "false_positives", "num_fragmentations": "fragmentations"}
    theirs = motmetrics.metrics.create().compute(accumulator, metrics=list(names), name="x").loc["x"]
    ours = scores.compute()
    assert {name: ours[name] for name in names.values()} == pytest.approx(
        {names[name]: float(theirs[name]) for name in names}
    )


def test_hota_by_hand():
    """One animal in four frames, its track cut in two; each frame is matched with similarity .8.

    Up to .8 there are 4 hits: detection 4/4; each hit's association is 2 of 4 frames: 2 / (2 + 2) = .5. Above, none.
    """
    scores = TrackingScores()
    for frame in range(4):
        scores.add(0, [1], [7 if frame < 2 else 8], [[0.8]])
    values = scores.compute()
    assert values["hota"] == pytest.approx(16 / 19 * math.sqrt(0.5))
    assert (values["switches"], values["idf1"], values["mota"]) == (1, 0.5, 0.75)


def test_hota_with_a_miss_and_a_false_positive_by_hand():
    """Frame 1 matches at 1.0; in frame 2 the animal is missed and something else is shown.

    Detection 1 / 3. The hit's association: 1 / (1 + 1 missed + 0) = 1/2, the false one has another identity.
    """
    scores = TrackingScores()
    scores.add(0, [1], [1], [[1.0]])
    scores.add(0, [1], [2], [[0.0]])
    values = scores.compute()
    assert values["hota"] == pytest.approx(math.sqrt(1 / 3 * 1 / 2))
    assert (values["misses"], values["false_positives"], values["mota"]) == (1, 1, 0.0)


def test_fragmentations_by_hand():
    """Seen, missed, seen, missed: one interruption; the last gap is the end of the track."""
    scores = TrackingScores()
    for shown in ([1], [], [1], []):
        scores.add(0, [5], shown, np.ones((1, len(shown))))
    assert scores.compute()["fragmentations"] == 1


def test_identities_of_two_videos_are_not_the_same():
    scores = TrackingScores()
    for video in ("a", "b"):
        for _ in range(3):
            scores.add(video, [1], [1 if video == "a" else 9], [[1.0]])
    assert scores.compute()["idf1"] == 1.0 and scores.compute()["switches"] == 0


def test_matching_is_by_place_not_by_index():
    """Two animals that are listed in the other order, with each other's number."""
    boxes = np.array([[0, 0, 10, 10], [50, 50, 60, 60.0]])
    scores = TrackingScores()
    scores.add(0, [1, 2], [1, 2], tracking.iou(boxes, boxes[::-1]))
    assert scores.compute()["idf1"] == 1.0 and scores.compute()["misses"] == 0
    assert tracking.closeness([[0, 0]], [[3, 4], [0, 10]], limit=5).tolist() == [[0.5, 0.0]]


def test_nothing_matches():
    scores = TrackingScores()
    scores.add(0, [1], [1], [[0.2]])
    scores.add(0, [1], [], np.zeros((1, 0)))
    values = scores.compute()
    assert (values["idf1"], values["misses"], values["false_positives"]) == (0, 2, 1)


def test_nothing_to_score_is_not_a_number():
    assert all(math.isnan(value) for value in TrackingScores().compute().values())
