"""What predict.py writes of tracks, read again by sleap-io, tifffile and the readers of training."""

import csv
import dataclasses
import json
import math

import numpy as np
import pytest
from track_files import images, write_film, write_slp, write_stack

from data.processor import Source
from data.tracks import find
from data.tracks.config import Config, PredictFlags, TrackerSettings, with_flags
from data.tracks.crops import Cutter
from data.tracks.open_recording import open_recording
from data.tracks.processor import Processor, Tracked
from data.tracks.tracker import Assigned
from data.tracks.video import read_image
from data.tracks.writers import writer_of

GIVEN = [[0, 1], [1, 0], [0, -1], [0, 1]]  # identities of the two detections in each frame


def records(recording, given=GIVEN, unsure=(2,)):
    for frame, identities in zip(recording.labelled(), given, strict=False):
        confidences = np.linspace(0.5, 1, len(identities))
        yield Tracked(recording, frame, Assigned(np.array(identities), confidences, frame.index in unsure))


@pytest.fixture
def stack(tmp_path):
    write_stack(tmp_path / "in", "a", frames=4, tracks=2)
    return open_recording(find.Source(tmp_path / "in/a.csv", tmp_path / "in/a.tif"), Cutter(8), 1)


def written(target, recordings, dropped=()):
    """Write recordings as sources of their names."""
    writer = writer_of(target)
    for name, recording in recordings.items():
        for record in records(recording):
            writer.write(Source(name, recording.sequence.source), record)
        if name in dropped:
            writer.drop(Source(name, recording.sequence.source))
    writer.close()
    return target


def test_a_csv_file(stack, tmp_path):
    rows = list(csv.DictReader(written(tmp_path / "x.csv", {"a.csv": stack}).open()))
    assert [(int(row["frame"]), int(row["detection"]), row["track"]) for row in rows] == [
        (frame, index, "" if identity < 0 else str(identity))
        for frame, identities in enumerate(GIVEN)
        for index, identity in enumerate(identities)
    ]
    places = stack.sequence.points[:, 0]
    assert np.array([[float(row["x"]), float(row["y"])] for row in rows]) == pytest.approx(places, abs=2e-3)
    assert [float(row["confidence"]) for row in rows] == [0.5, 1.0] * 4
    assert {row["file"] for row in rows} == {"a.csv"}


@pytest.mark.slow
def test_text_of_motchallenge(stack, tmp_path):
    """As the reader of training reads it, and motmetrics."""
    file = written(tmp_path / "x.txt", {"a.csv": stack})
    sequence = find.read_labels(file)
    assert sequence.frames.tolist() == [0, 0, 1, 1, 2, 3, 3]
    assert [sequence.tracks[index] for index in sequence.identities] == ["1", "2", "2", "1", "1", "1", "2"]
    kept = np.delete(np.arange(8), 5)
    assert sequence.points[:, 0] == pytest.approx(stack.sequence.points[kept, 0], abs=2e-3)
    motmetrics = pytest.importorskip("motmetrics")
    table = motmetrics.io.loadtxt(str(file))
    assert table.index.tolist() == [(1, 1), (1, 2), (2, 2), (2, 1), (3, 1), (4, 1), (4, 2)]
    with pytest.raises(ValueError, match="one video"):
        written(tmp_path / "y.txt", {"a.csv": stack, "b.csv": stack})


@pytest.mark.parametrize("has_skeleton", [True, False])
def test_a_slp_file(tmp_path, has_skeleton):
    """Tracks, confidences and suggestions; a .slp input keeps its skeleton and its video."""
    sleap_io = pytest.importorskip("sleap_io")
    places = write_stack(tmp_path, "a", frames=4, tracks=2)
    source = find.Source(tmp_path / "a.csv", tmp_path / "a.tif")
    if has_skeleton:
        source = find.Source(
            write_slp(tmp_path / "a.slp", places), write_film(tmp_path / "a.mp4", images(places, (48, 64)))
        )
    recording = open_recording(source, Cutter(8), 1)
    labels = sleap_io.load_slp(str(written(tmp_path / "x.slp", {"a": recording})), open_videos=False)
    names = [
        [None if instance.track is None else instance.track.name for instance in frame.instances] for frame in labels
    ]
    assert names == [[None if one < 0 else f"track_{one}" for one in frame] for frame in GIVEN]
    points = np.stack([[instance.numpy() for instance in frame.instances] for frame in labels])
    assert points[:, :, 0] == pytest.approx(places, abs=1e-3)
    assert labels.skeletons[0].node_names == (["head", "tail"] if has_skeleton else ["centroid"])
    assert labels.videos[0].filename.endswith("a.mp4" if has_skeleton else "a.tif")
    assert [suggestion.frame_idx for suggestion in labels.suggestions] == [2]
    assert [instance.tracking_score for instance in labels[0].instances] == [0.5, 1.0]


def test_label_images_of_the_cell_tracking_challenge(stack, tmp_path):
    """Image and table agree; identity 1, lost in frame 2, goes on as label 3 with 2 as its parent."""
    tifffile = pytest.importorskip("tifffile")
    folder = written(tmp_path / "ctc", {"a.csv": stack}) / "a_RES"
    table = [tuple(map(int, line.split())) for line in (folder / "res_track.txt").read_text().splitlines()]
    assert table == [(1, 0, 3, 0), (2, 0, 1, 0), (3, 3, 3, 2)]
    for frame in range(4):
        image = tifffile.imread(folder / f"mask{frame:03d}.tif")
        assert image.dtype == np.uint16 and image.shape == (48, 64)
        assert set(np.unique(image)) - {0} == {label for label, begin, end, _ in table if begin <= frame <= end}
    first = tifffile.imread(folder / "mask000.tif")
    for label, (x, y) in zip((1, 2), stack.sequence.points[:2, 0], strict=True):
        rows, columns = np.nonzero(first == label)
        assert (rows.mean(), columns.mean()) == (pytest.approx(y, abs=1), pytest.approx(x, abs=1))
        assert len(rows) == pytest.approx(math.pi * 16, rel=0.3)


def test_label_images_of_more_than_a_thousand_frames_have_four_digits(stack, tmp_path):
    pytest.importorskip("tifffile")
    folder = written(tmp_path / "ctc", {"a.csv": dataclasses.replace(stack, stop=1001, video=None)}) / "a_RES"
    assert sorted(path.name for path in folder.glob("*.tif")) == [f"mask{frame:04d}.tif" for frame in range(4)]


def test_regions_are_those_of_the_input(tmp_path):
    """Label images in, the same regions out with the numbers of tracks; labels above 255 too."""
    tifffile = pytest.importorskip("tifffile")
    folder = tmp_path / "c_GT" / "TRA"
    folder.mkdir(parents=True)
    before = np.zeros((2, 20, 30), np.uint16)
    before[:, 2:7, 3:9], before[0, 10:12, 10:20], before[1, 12:14, 10:20] = 300, 7, 7
    for frame, image in enumerate(before):
        tifffile.imwrite(folder / f"man_track{frame:03d}.tif", image)
    (folder / "man_track.txt").write_text("300 0 1 0\n7 0 1 0\n")
    recording = open_recording(find.Source(folder, None), Cutter(8), 1)
    values = recording.sequence.mask_labels.reshape(2, 2)
    target = tmp_path / "out"
    writer = writer_of(target)
    for record in records(recording, [[5, 9], [5, 9]]):
        writer.write(Source("c", folder), record)
    writer.close()
    for frame in range(2):
        image = tifffile.imread(target / "c_RES" / f"mask{frame:03d}.tif")
        for label, value in zip((1, 2), values[frame], strict=True):
            assert np.array_equal(image == label, before[frame] == value)


def test_two_recordings_of_one_name_have_no_two_folders(stack, tmp_path):
    with pytest.raises(ValueError, match="called a too"):
        written(tmp_path / "ctc", {"a/a.csv": stack, "b/a.csv": stack})


@pytest.mark.parametrize("name", ["x.csv", "x.slp", "ctc"])
def test_a_file_with_an_error_leaves_nothing(tmp_path, name):
    recordings = {}
    for letter in "abc":
        write_stack(tmp_path / letter, letter, frames=4, tracks=2)
        source = find.Source(tmp_path / letter / f"{letter}.csv", tmp_path / letter / f"{letter}.tif")
        recordings[letter] = open_recording(source, Cutter(8), 1)
    some = written(tmp_path / name, recordings, dropped="b")
    (tmp_path / "other").mkdir()
    expected = written(tmp_path / "other" / name, {letter: recordings[letter] for letter in "ac"})
    if name == "x.csv":
        assert some.read_text() == expected.read_text()
    elif name == "ctc":
        names = [sorted(path.relative_to(folder) for path in folder.rglob("*")) for folder in (some, expected)]
        assert names[0] == names[1] and len(names[0]) == 12
    else:
        import sleap_io

        labels = sleap_io.load_slp(str(some), open_videos=False)
        assert [video.filename for video in labels.videos] == [str(tmp_path / f"{one}/{one}.tif") for one in "ac"]


def test_flags_replace_the_settings_of_training():
    settings = TrackerSettings(window_size=3, iou="mult")
    flags = PredictFlags(max_tracks=2, mult_thresh=False)
    assert with_flags(settings, flags) == TrackerSettings(window_size=3, iou="mult", max_tracks=2, mult_thresh=False)
    assert not hasattr(flags, "match_distance")


def test_coordinates_are_read_in_the_image_size_of_training(tmp_path):
    write_stack(tmp_path / "in", "a", frames=4, tracks=2)
    described = {**dataclasses.asdict(Cutter(4)), "channels": 1, "images": False}
    (tmp_path / "tracks.json").write_text(json.dumps(described))
    processor = Processor.from_pretrained(tmp_path, Config(images=False, image_size=[100, 200]), None)
    items = list(processor.read(Source("a.csv", tmp_path / "in/a.csv")))
    assert [item.raw.frame.size for item in items] == [(100, 200)] * 4
    with pytest.raises(ValueError, match="--video"):
        Processor.from_pretrained(tmp_path, Config(images=False), None, PredictFlags(video="a.mp4"))


def test_regions_of_compressed_label_images(tmp_path):
    """LZW, which OpenCV writes and tifffile alone cannot read."""
    cv2 = pytest.importorskip("cv2")
    mask = np.zeros((20, 30), np.uint16)
    mask[3:8, 4:9], mask[12:14, 20:29] = 300, 7
    for place in ("01_GT/TRA", "01"):
        (tmp_path / place).mkdir(parents=True)
        for number in range(2):
            assert cv2.imwrite(str(tmp_path / place / f"t{number:03}.tif"), mask)
    recording = open_recording(find.Source(tmp_path / "01_GT/TRA", tmp_path / "01"), Cutter(4), 1)
    written(tmp_path / "out", {"01": recording})
    labels = read_image(tmp_path / "out/01_RES/mask000.tif")
    assert set(np.unique(labels)) == {0, 1, 2} and np.array_equal(labels > 0, mask > 0)
