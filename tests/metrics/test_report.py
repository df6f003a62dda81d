"""Files of an evaluation's report."""

import csv
import json
import math

import numpy as np
import pytest
from PIL import Image

from metrics import report
from metrics.scores import multi_label_rows

LABELS = ["flood", "rubble, misc", "road"]


def data():
    random = np.random.default_rng(0)
    targets = (random.random((50, 3)) < 0.4).astype(float)
    targets[:, 2] = 0
    return random.random((50, 3)), targets


def test_scores_are_json_without_nan(tmp_path):
    path = report.write_scores(tmp_path / "new", {"macro_f1": 0.25, "nested": {"x": [math.nan, 1]}, "n": math.nan})
    assert json.loads(path.read_text()) == {"macro_f1": 0.25, "nested": {"x": [None, 1]}, "n": None}


def test_labels_survive_being_written(tmp_path):
    rows = multi_label_rows(LABELS, *data(), thresholds=[0.2, 0.3, 0.5])
    with open(report.write_labels(tmp_path, rows), newline="") as file:
        read = list(csv.DictReader(file))
    assert [row["label"] for row in read] == LABELS
    assert list(read[0]) == list(rows[0]) and {"f1", "f1_at_0.5", "threshold"} <= set(read[0])
    assert [float(row["f1"]) for row in read] == [row["f1"] for row in rows]
    assert read[2]["average_precision"] == "" and int(read[2]["support"]) == 0


def test_table_has_a_line_for_each_label():
    lines = report.label_table(multi_label_rows(LABELS, *data()))
    assert len(lines) == 4 and all(line.startswith(label) for line, label in zip(lines[1:], LABELS, strict=True))
    assert len({len(line) for line in lines}) == 1 and lines[3].endswith("-")


@pytest.mark.slow
def test_curves_are_drawn_for_labels_with_positives(tmp_path):
    scores, targets = data()
    path = report.draw_precision_recall(tmp_path / "new", LABELS, scores, targets)
    drawn = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    for color, is_drawn in (((31, 119, 180), True), ((255, 127, 14), True), ((44, 160, 44), False)):
        assert (drawn == color).all(1).any() == is_drawn  # the first three colours of matplotlib's cycle
    assert report.draw_precision_recall(tmp_path / "none", LABELS, scores, 0 * targets) is None
    assert not (tmp_path / "none").exists()
