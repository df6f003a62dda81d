"""The metric of tracks, the tracker that runs online, and the files of eval.py's report."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from track_files import write_stack

from data.tracks.clips import Windows, collate
from data.tracks.config import Config, TrackerSettings
from data.tracks.crops import Cutter
from data.tracks.find import Source
from data.tracks.online import OnlineTracker, encoded
from data.tracks.open_recording import open_recording
from data.tracks.report import Report, draw_identities
from data.tracks.scoring import TrackingMetric, outline, scored_frame
from metrics.tracking import DIRECTIONS


class Oracle:
    """A model that knows the identities; each window's logits are 8 for equal ones, else -8."""

    def __call__(self, batch):
        same = batch["identities"][:, :, None] == batch["identities"][:, None]
        return {"association": torch.where(same, 8.0, -8.0)[None]}


@pytest.fixture
def recording(tmp_path):
    write_stack(tmp_path, "a", frames=12, tracks=3)
    source = Source(tmp_path / "a.csv", tmp_path / "a.tif")
    return dataclasses.replace(open_recording(source, Cutter(8), 1), seed=(3, 0))


def scored(recording, settings, size, model=None):
    metric, windows = TrackingMetric(settings), Windows([recording], settings.context)
    metric.reset()
    for first in range(0, len(windows), size):
        batch = collate([windows[index] for index in range(first, min(first + size, len(windows)))])
        metric.update(batch, (model or Oracle())(batch))
    return metric, metric.compute()


@pytest.mark.slow
def test_an_oracle_is_perfect_in_any_batches(recording):
    settings = TrackerSettings(window_size=3)
    values = [scored(recording, settings, size)[1] for size in (1, 5, 12)]
    assert values[0] == values[1] == values[2] and values[0].keys() == DIRECTIONS.keys()
    assert values[0]["idf1"] == values[0]["mota"] == values[0]["hota"] == 1.0 and values[0]["switches"] == 0


@pytest.mark.slow
def test_frames_of_several_processes_are_put_in_order(recording):
    settings = TrackerSettings()
    metric, values = scored(recording, settings, 4)
    metric.frames = metric.frames[1::2] + metric.frames[::2]
    assert metric.compute() == values


@pytest.mark.slow
def test_a_diverged_model_has_no_scores(recording):
    _, values = scored(
        recording, TrackerSettings(), 4, lambda batch: {"association": math.nan * Oracle()(batch)["association"]}
    )
    assert all(math.isnan(value) for value in values.values())


def test_one_frame_by_hand():
    """Two detections now, the second with one anchor only; three before, of two frames; the last column is padding."""
    sample = {
        "boxes": np.zeros((6, 2, 4), np.float32),
        "points": np.zeros((6, 2, 2), np.float32),
        "frames": np.array([4, 4, 5, 6, 6, 0]),
        "mask": np.array([True] * 5 + [False]),
        "video": np.array(2),
        "frame": np.array(6),
        "image_size": np.array([100.0, 200.0]),
        "truth_boxes": np.array([[0.1, 0.1, 0.2, 0.2], [0, 0, 0, 0]], np.float32),
        "truth_identities": np.array([7, -1]),
    }
    sample["boxes"][3] = [[0.1, 0.1, 0.2, 0.2], [0.3, 0.1, 0.4, 0.2]]
    sample["points"][3] = [[0.15, 0.15], [0.35, 0.15]]
    sample["boxes"][4, 0], sample["points"][4, 0] = [0.5, 0.5, 0.6, 0.6], [0.55, 0.55]
    frame = scored_frame(sample, np.arange(36.0).reshape(6, 6))
    assert (frame.video, frame.frame, frame.truth.tolist()) == (2, 6, [7])
    assert frame.boxes == pytest.approx(np.array([[20, 20, 30, 40], [50, 100, 60, 120]]), rel=1e-5)
    assert frame.truth_boxes == pytest.approx(np.array([[10, 20, 20, 40]]), rel=1e-5)
    assert frame.references.tolist() == [[4, 0], [4, 1], [5, 0]]
    assert frame.logits.tolist() == [[18, 19, 20], [24, 25, 26]]
    assert frame.angles[0] == pytest.approx(90) and math.isnan(frame.angles[1])
    assert outline(np.zeros((1, 2, 4))).tolist() == [[0, 0, 0, 0]]


@pytest.mark.slow
@pytest.mark.keys("dataset(tracks).tracker")
@pytest.mark.parametrize(("settings", "misses"), [({"match_distance": 3.0}, 0), ({"match_distance": 1.0}, 36), ({}, 0)])
def test_detections_match_by_distance_or_overlap(recording, settings, misses):
    """Detections are 2 px off; boxes of 8 px then overlap by 6/10. The tracker section says which match."""
    metric, _ = scored(recording, TrackerSettings(**settings), 4)
    for frame in metric.frames:
        frame.boxes[:, [1, 3]] += 2
    assert metric.compute()["misses"] == misses
    assert "match_distance" in {field.name for field in dataclasses.fields(Config().tracker)}


@pytest.mark.slow
def test_baselines_need_no_model(recording):
    """Three dots on straight lines: constant velocity follows them; the model's logits do not matter."""
    metric, _ = scored(recording, TrackerSettings(), 4)
    expected = metric.baselines()
    for frame in metric.frames:
        frame.logits *= -1
    assert metric.baselines() == expected and expected.keys() == {"iou", "velocity"}
    assert expected["velocity"]["idf1"] == 1.0


class Encoder(torch.nn.Module):
    """A model with the interface of the tracker's network: features are mean and place, logits nearness of them."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(40.0))

    def encode(self, boxes, mask, crops):
        brightness = crops.float().mean((-3, -2, -1))[..., None] / 255
        return torch.cat([brightness, boxes[:, :, 0, :2]], dim=-1) * mask[..., None]

    def forward(self, boxes, times, mask, features):
        return {"association": 4 - self.scale * torch.cdist(features, features)[None]}


@pytest.mark.slow
@pytest.mark.parametrize("context", [2, 8])
def test_online_tracking_is_that_of_the_metric(recording, context):
    """The same identities from whole windows and from features that are kept, for any grouping of the frames."""
    settings, model = TrackerSettings(window_size=context), Encoder()

    def whole(batch):
        features = model.encode(batch["boxes"], batch["mask"], batch["crops"])
        return model(batch["boxes"], batch["times"], batch["mask"], features)

    with torch.no_grad():
        metric, _ = scored(recording, settings, 5, whole)
        expected = [assigned for _, assigned in metric.tracked(settings)]
        for size in (1, 4):
            tracker, frames = OnlineTracker(model, settings), list(recording.frames())
            parts = [frames[first : first + size] for first in range(0, len(frames), size)]
            found = [tracker.update(*pair) for part in parts for pair in zip(part, encoded(model, part), strict=True)]
            for one, other in zip(found, expected, strict=True):
                assert one.identities.tolist() == other.identities.tolist()
                assert one.confidences == pytest.approx(other.confidences, abs=1e-4)
    assert len(tracker.past) <= context + 1


@pytest.mark.slow
def test_the_report_is_scores_films_and_pictures(recording, tmp_path):
    import av

    settings = TrackerSettings()
    turned = dataclasses.replace(recording, scramble=True)
    metric, values = scored(turned, settings, 4)
    lines = Report(settings)("validation", Windows([turned], 8), metric, values, tmp_path / "eval")
    assert len(lines) == 5 and [line.split()[0] for line in lines[1:4]] == ["model", "iou", "velocity"]
    written = json.loads((tmp_path / "eval/scores.json").read_text())
    assert written["idf1"] == 1.0 and written["iou_idf1"] == metric.baselines()["iou"]["idf1"]
    with av.open(str(tmp_path / "eval/0-a.mp4")) as film:
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    assert len(frames) == 12 and frames[0].shape == (48, 64, 3)
    assert all(np.ptp(frame.astype(int), axis=-1).max() > 60 for frame in frames)  # colours on gray images
    assert (tmp_path / "eval/0-a.png").stat().st_size > 0
    assert Report(settings)("train", None, None, {}, tmp_path) == []


@pytest.mark.slow
def test_a_picture_of_a_video_whose_name_looks_like_a_formula(tmp_path):
    pytest.importorskip("matplotlib")
    draw_identities(tmp_path / "a.png", r"$\fly$", [(0, 0, 0), (1, 0, 1)])
    assert (tmp_path / "a.png").stat().st_size
