"""predict.py and eval.py on tracks, from a trained checkpoint to files."""

import csv
import json

import numpy as np
import pytest
from recipes import tracker as recipe
from track_files import write_stack

import eval as evaluation
import predict
import train
from loader.command_line.entry import command_line

pytestmark = pytest.mark.slow
SETTINGS = """max_steps=30 logging_steps=30 learning_rate=0.01 lr_scheduler_type=constant eval_strategy=steps
    eval_steps=30 save_strategy=no report_to=none per_device_train_batch_size=4 dataset.val_frames=12
    dataset.tracker.window_size=4"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(checkpoint, input file with three dots in 9 frames)"""
    folder = tmp_path_factory.mktemp("tracks")
    train.main(
        [
            *recipe.words(folder),
            "--set",
            *SETTINGS.split(),
            f"output_dir={folder / 'out'}",
            f"cache_dir={folder / 'cache'}",
        ]
    )
    write_stack(folder / "new", "b", frames=9, tracks=3, seed=4)
    return folder / "out", folder / "new" / "b.csv"


def predicted(run, output, *words):
    checkpoint, file = run
    predict.main(["--checkpoint", str(checkpoint), "--input", str(file), "--output", str(output), *words])
    return output


def refused(run, *words, file=None):
    checkpoint, own = run
    words = ["--checkpoint", str(checkpoint), "--input", str(file or own), *map(str, words)]
    with pytest.raises(SystemExit) as left:
        command_line(predict.main, words)
    return left.value.code


def test_unsure_frames_are_refused_where_no_file_names_them(run, tmp_path, capsys):
    assert refused(run, "--output", tmp_path / "x.csv", "--confidence_threshold", "0.5") == 2
    assert "--confidence_threshold 0.5" in capsys.readouterr().err and not (tmp_path / "x.csv").exists()


def tracks(file):
    return [row["track"] for row in csv.DictReader(file.open())]


def test_every_format_has_the_same_tracks(run, tmp_path):
    import sleap_io
    import tifffile

    rows = list(csv.DictReader(predicted(run, tmp_path / "x.csv").open()))
    assert len(rows) == 27 and {int(row["frame"]) for row in rows} == set(range(9))
    mot = [line.split(",") for line in predicted(run, tmp_path / "mot.txt").read_text().splitlines()]
    assert [(int(line[0]) - 1, str(int(line[1]) - 1)) for line in mot] == [(int(r["frame"]), r["track"]) for r in rows]
    labels = sleap_io.load_slp(
        str(predicted(run, tmp_path / "x.slp", "--confidence_threshold", "1")), open_videos=False
    )
    assert [f"track_{row['track']}" for row in rows] == [one.track.name for frame in labels for one in frame.instances]
    assert {suggestion.frame_idx for suggestion in labels.suggestions} <= set(range(1, 9)) and labels.suggestions
    folder = predicted(run, tmp_path / "ctc") / "b_RES"
    table = [tuple(map(int, line.split())) for line in (folder / "res_track.txt").read_text().splitlines()]
    images = [tifffile.imread(path) for path in sorted(folder.glob("mask*.tif"))]
    for frame, image in enumerate(images):
        assert set(np.unique(image)) - {0} == {label for label, begin, end, _ in table if begin <= frame <= end}
    assert not list(tmp_path.glob(".*"))


def test_flags_change_the_tracker(run, tmp_path):
    free = tracks(predicted(run, tmp_path / "free.csv"))
    two = tracks(predicted(run, tmp_path / "two.csv", "--max_tracks", "2"))
    new = tracks(predicted(run, tmp_path / "new.csv", "--overlap_thresh", "100"))
    assert "" not in free and two.count("") == 9 and set(two) == {"", "0", "1"}
    assert new == [str(number) for number in range(27)]


def test_outputs_that_cannot_be_written_are_refused(run, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "other").write_text("kept")
    for name in ("x.json", "full", "missing/x.csv"):
        assert refused(run, "--output", tmp_path / name) == 2
    assert refused(run) == 2
    assert refused(run, "--output", tmp_path / "x.csv", "--max_angle_diff", "20") == 2
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "other"]


def test_the_video_may_have_another_name(run, tmp_path):
    write_stack(tmp_path / "in", "b", frames=9, tracks=3, seed=4)
    (tmp_path / "in" / "b.tif").rename(tmp_path / "in" / "film.tif")
    file = tmp_path / "in" / "b.csv"
    assert refused(run, "--output", tmp_path / "x.csv", file=file) == 2
    words = [
        "--checkpoint",
        run[0],
        "--input",
        file,
        "--output",
        tmp_path / "x.csv",
        "--video",
        tmp_path / "in/film.tif",
    ]
    predict.main([*map(str, words)])
    assert tracks(tmp_path / "x.csv") == tracks(predicted(run, tmp_path / "y.csv"))
    write_stack(tmp_path / "in", "c", frames=9, tracks=3, seed=5)  # whose video the film is not
    words[3] = tmp_path / "in"
    predict.main([*map(str, words)])
    with (tmp_path / "x.csv").open() as file:
        assert {row["file"] for row in csv.DictReader(file)} == {"b.csv"}


def test_eval_scores_the_held_out_frames_beside_baselines(run):
    checkpoint, _ = run
    scores = evaluation.main(["--checkpoint", str(checkpoint)])
    (line,) = (line for line in read_log(checkpoint) if "eval_loss" in line)
    assert scores["idf1"] == pytest.approx(line["eval_idf1"]) and 0 < scores["idf1"] <= 1
    written = json.loads((checkpoint / "eval/scores.json").read_text())
    assert {"idf1", "iou_idf1", "velocity_mota"} <= written.keys() and written["iou_misses"] == 0
    assert {path.name for path in (checkpoint / "eval").iterdir()} == {"scores.json", "0-a.png", "0-a.mp4"}


def read_log(checkpoint):
    return [json.loads(line) for line in (checkpoint / "metrics.jsonl").read_text().splitlines()]
