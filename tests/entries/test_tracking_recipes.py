"""The tracking recipes, shortened, on real videos: they beat trackers without a model."""

import json

import pytest
from documents import SHARED

import eval as evaluation
import train

pytestmark = pytest.mark.slow
TRACKING = SHARED / "data/tracking"
SHORT = ["eval_strategy=no", "save_strategy=no", "report_to=none", "seed=1"]


def trained(tmp_path, recipe, pattern, *settings):
    """Train a recipe on the files of a pattern; returns (scores of the held-out frames, those of the baselines too)."""
    files = sorted(TRACKING.glob(pattern))
    if not files:
        pytest.skip(f"{TRACKING / pattern} is not there")
    videos = tmp_path / "videos"
    videos.mkdir()
    for file in files:
        (videos / file.name).symlink_to(file)
    words = ["--training_config", recipe, str(videos), "--output_dir", str(tmp_path / "out"), "--set", *SHORT]
    train.main([*words, f"cache_dir={tmp_path / 'cache'}", *settings])
    scores = evaluation.main(["--checkpoint", str(tmp_path / "out"), "--batch_size", "8"])
    return scores, json.loads((tmp_path / "out/eval/scores.json").read_text())


@pytest.mark.keys("dataset(tracks).scramble")
def test_flies_are_tracked_by_their_looks(tmp_path, in_root):
    """Frames and places are turned at random, so that places say nothing: scramble of dataset(tracks)."""
    pytest.importorskip("av")
    scores, all_scores = trained(tmp_path, "tracking_cpu", "three_flies.*", "dataset.scramble=rot90", "max_steps=120")
    assert scores["idf1"] >= 0.97 and all_scores["iou_idf1"] < 0.8


def test_particles_by_their_coordinates_alone(tmp_path, in_root):
    settings = ("max_steps=150",)
    scores, all_scores = trained(tmp_path, "tracking_points_cpu", "isbi/microtubules/*.xml", *settings)
    assert scores["idf1"] > max(0.9, all_scores["iou_idf1"], all_scores["velocity_idf1"] - 0.02)
