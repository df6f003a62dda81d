"""The tracker on hand-made scores."""

import math

import numpy as np
import pytest

from data.tracks.config import TrackerSettings
from data.tracks.tracker import Tracker, excess, normalized_entropy, principal_angles

SURE = 6.0  # a logit


def box(y, x, side=10.0):
    return [y - side / 2, x - side / 2, y + side / 2, x + side / 2]


class Run:
    """Feeds a tracker frames whose detections have true names; logits are SURE for equal names, else -SURE."""

    def __init__(self, **settings):
        self.tracker, self.past = Tracker(TrackerSettings(**settings)), []

    def step(self, frame, names, places=None, logits=None, angles=None):
        boxes = np.array([box(*place) for place in places or [(0.0, 100.0 * ord(name)) for name in names]])
        references = np.array([(number, index) for number, others in self.past for index in range(len(others))], int)
        seen = [name for _, others in self.past for name in others]
        if logits is None:
            logits = [[SURE if one == other else -SURE for other in seen] for one in names]
        self.past.append((frame, names))
        logits = np.array(logits, float).reshape(len(names), len(seen))
        return self.tracker.update(frame, boxes.reshape(-1, 4), logits, references.reshape(-1, 2), angles)

    def identities(self, frame, names, **more):
        return self.step(frame, names, **more).identities.tolist()


def test_identities_follow_the_scores_in_any_order():
    run = Run()
    assert run.identities(0, "ab") == [0, 1]
    assert run.identities(1, "ba") == [1, 0]
    assert run.identities(2, "cab") == [2, 0, 1]
    assert run.identities(3, "") == []
    assert run.identities(4, "bc") == [1, 2]


def test_the_score_is_the_sum_over_frames_of_each_frames_softmax():
    """Two references a frame with logits 0 and 1 against "none" at 0; two frames: twice the softmax, by hand."""
    run = Run(overlap_thresh=0)
    run.step(0, "ab")
    run.step(1, "ab")
    total = 2 + math.e
    tracker = run.tracker
    references = np.array([(0, 0), (0, 1), (1, 0), (1, 1)])
    scores, seen = tracker._scores(np.array([[0.0, 1, 0, 1]]), references, [0, 1])
    assert scores == pytest.approx(np.array([[2 / total, 2 * math.e / total]])) and seen.tolist() == [2, 2]


@pytest.mark.parametrize(("size", "expected"), [(1, 1), (2, 2), (8, 3)])
def test_a_track_is_compared_by_its_newest_detections(size, expected):
    run = Run(window_size=size, max_gap=8)
    for frame in range(3):
        run.step(frame, "a")
    references = np.array([(0, 0), (1, 0), (2, 0)])
    scores, seen = run.tracker._scores(np.full((1, 3), 40.0), references, [0])
    assert (scores[0, 0], seen[0]) == (pytest.approx(expected), expected)


@pytest.mark.parametrize(("settings", "expected"), [({}, 1), ({"max_gap": 20}, 0), ({"window_size": 12}, 0)])
def test_a_track_ends_after_the_gap(settings, expected):
    run = Run(**{"window_size": 4, **settings})
    run.step(0, "a")
    assert run.identities(10, "a") == [expected]


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"max_gap": 3}, "max_gap: 3"),
        ({"motion": True}, "iou"),
        ({"motion": True, "iou": "max", "window_size": 1}, "2"),
    ],
)
def test_settings_without_effect_are_refused(settings, name):
    with pytest.raises(ValueError, match=name):
        TrackerSettings(**settings)


def test_an_ended_track_leaves_nothing_behind():
    run = Run(window_size=2)
    for frame in range(50):
        run.step(3 * frame, "ab")
    assert len(run.tracker.tracks) == 2 and len(run.tracker.frames) == 1


@pytest.mark.parametrize(("threshold", "times", "expected"), [(0.4, False, 0), (0.4, True, 1), (0.7, False, 1)])
def test_a_score_must_be_above_the_threshold(threshold, times, expected):
    """Two frames with a logit of -.8 against 0, a probability of .31 each: the score is .62, and .8 twice .4."""
    run = Run(overlap_thresh=threshold, mult_thresh=times)
    run.step(0, "a")
    run.step(1, "a")
    assert run.identities(2, "a", logits=[[-0.8, -0.8]]) == [expected]


@pytest.mark.parametrize(("iou", "expected"), [(None, 1), ("mult", 0), ("max", 0)])
def test_overlap_decides_where_scores_are_even(iou, expected):
    """The scores prefer the far track slightly; the near one overlaps wholly."""
    run = Run(iou=iou)
    run.step(0, "ab", places=[(0, 0), (500, 500)])
    logits = [[0.0, 0.1]]
    assert run.identities(1, "a", places=[(0, 0)], logits=logits) == [expected]


def test_scores_combined_with_overlap_by_hand():
    run = Run()
    run.step(0, "a", places=[(0, 0)])
    boxes = np.array([box(0, 5)])  # half of each box is common: IoU 1/3
    for mode, value in (("mult", 0.5 + abs(1 / 3 - 0.5) / 3), ("max", 0.5), (None, 0.5)):
        run.tracker.settings.iou = mode
        assert run.tracker._with_geometry(np.array([[0.5]]), [0], 1, boxes, None)[0, 0] == pytest.approx(value)


def test_distance_and_direction_beyond_their_limits_lower_the_score():
    assert excess(np.array([5.0, 10, 15, 30]), 10).tolist() == [0, 0, 0.5, 2]
    near = Run(max_center_dist=50)
    near.step(0, "ab", places=[(0, 0), (300, 300)])
    assert near.identities(1, "a", places=[(0, 10)], logits=[[0.0, 3.0]]) == [0]
    turned = Run(max_angle_diff=20)
    turned.step(0, "ab", angles=np.array([5.0, 90]))
    assert turned.identities(1, "a", logits=[[0.0, 1.0]], angles=np.array([178.0])) == [0]  # 7° from 5°
    unknown = Run(max_angle_diff=20)
    unknown.step(0, "ab", angles=np.array([5.0, math.nan]))
    assert unknown.identities(1, "a", logits=[[0.0, 1.0]], angles=np.array([178.0])) == [1]


def test_most_identities_of_a_video():
    """The third animal waits until its score wins; a track that was lost for long is taken again."""
    run = Run(max_tracks=2)
    first = run.step(0, "abc")
    assert first.identities.tolist() == [0, 1, -1] and first.confidences.tolist() == [1, 1, 0]
    assert run.identities(50, "x") == [0]
    assert run.tracker.count == 2


def test_motion_moves_the_last_box_on():
    still, moving = Run(iou="mult"), Run(iou="mult", motion=True)
    for run in (still, moving):
        for frame in range(3):
            run.step(frame, "ab", places=[(0, 8 * frame), (0, 28)])
    logits = [[-2.0] * 6]
    assert still.identities(3, "a", places=[(0, 25)], logits=logits) == [1]
    assert moving.identities(3, "a", places=[(0, 25)], logits=logits) == [0]
    assert moving.tracker.tracks[1].box(7, True).tolist() == box(0, 28)


def test_the_whole_assignment_is_the_best_not_each_row():
    run = Run()
    run.step(0, "ab")
    assert run.identities(1, "ab", logits=[[2.0, 1.9], [1.9, -6.0]]) == [1, 0]


def test_confidences_and_unsure_frames():
    """Two equal scores: a probability of .5 and the largest entropy."""
    run = Run(confidence_threshold=0.5)
    first = run.step(0, "ab")
    assert first.confidences.tolist() == [1, 1] and not first.is_unsure
    assert not run.step(1, "ab").is_unsure
    even = run.step(2, "a", logits=[[0.0, 0, 0, 0]])
    assert even.is_unsure and even.confidences[0] == pytest.approx(0.5)
    assert normalized_entropy(np.array([[0.5, 0.5], [1, 0]])).tolist() == [1, 0]
    assert not Run().step(0, "a").is_unsure


def test_angles_of_points():
    points = np.array(
        [[[0, 0], [2, 2], [1, 1]], [[0, 0], [0, 3], [math.nan, 1]], [[1, 1], [math.nan, 1], [math.nan, 0]]]
    )
    assert principal_angles(points)[:2] == pytest.approx([45, 90]) and math.isnan(principal_angles(points)[2])


def test_equal_choices_are_not_flagged_at_threshold_0():
    """The entropy of equal probabilities is the largest possible one, whatever their number."""
    for choices in range(2, 200):
        assert normalized_entropy(np.full((1, choices), 1 / choices))[0] <= 1
