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
    report.write_scores(tmp_path, {"macro_f1": 0.25, "nested": {"x": math.nan, "y": 1}, "n": math.nan})
    written = json.loads((tmp_path / "scores.json").read_text())
    assert written == {"macro_f1": 0.25, "nested": {"x": None, "y": 1}, "n": None}


def test_labels_survive_being_written(tmp_path):
    rows = multi_label_rows(LABELS, *data())
    report.write_table(tmp_path / "labels.csv", rows)
    with (tmp_path / "labels.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [row["label"] for row in read] == LABELS
    assert list(read[0]) == list(rows[0]) and {"f1", "threshold"} <= set(read[0])
    assert [float(row["f1"]) for row in read] == [row["f1"] for row in rows]
    assert read[2]["average_precision"] == "" and int(read[2]["support"]) == 0


def test_table_has_a_line_for_each_label():
    lines = report.label_table(multi_label_rows(LABELS, *data()))
    assert len(lines) == 4 and all(line.startswith(label) for line, label in zip(lines[1:], LABELS, strict=True))
    assert len({len(line) for line in lines}) == 1 and lines[3].endswith("-")


@pytest.mark.slow
def test_curves_are_drawn_for_labels_with_positives(tmp_path):
    scores, targets = data()
    report.draw_precision_recall(tmp_path, LABELS, scores, targets)
    drawn = np.asarray(Image.open(tmp_path / "precision_recall.png").convert("RGB")).reshape(-1, 3)
    for color, is_drawn in (((31, 119, 180), True), ((255, 127, 14), True), ((44, 160, 44), False)):
        assert (drawn == color).all(1).any() == is_drawn  # the first three colours of matplotlib's cycle
